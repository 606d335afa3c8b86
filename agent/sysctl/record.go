package sysctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The record is a JSON object of path to original value. The first value seen
// counts: what a later agent finds may be an earlier agent's work.

func (k *Keeper) remember(found map[string]string) error {
	if k.record == "" {
		return nil
	}
	originals, err := k.recorded()
	if err != nil {
		return err
	}
	before := len(originals)
	for path, value := range found {
		if _, known := originals[path]; !known {
			originals[path] = value
		}
	}
	if len(originals) == before {
		return nil
	}
	return k.save(originals)
}

func (k *Keeper) recorded() (map[string]string, error) {
	originals := make(map[string]string)
	if k.record == "" {
		return originals, nil
	}
	b, err := os.ReadFile(k.record)
	if errors.Is(err, fs.ErrNotExist) {
		return originals, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of host settings: %w", err)
	}
	if err := json.Unmarshal(b, &originals); err != nil {
		return nil, fmt.Errorf("read the record of host settings %s: %w", k.record, err)
	}
	return originals, nil
}

// save replaces the record as a whole, so that a crash leaves the old or the new.
func (k *Keeper) save(originals map[string]string) error {
	b, err := json.MarshalIndent(originals, "", "  ")
	if err != nil {
		return err
	}
	temporary := k.record + ".new"
	err = os.MkdirAll(filepath.Dir(k.record), 0o755)
	if err == nil {
		err = os.WriteFile(temporary, append(b, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(temporary, k.record)
	}
	if err != nil {
		return fmt.Errorf("record original host settings: %w", err)
	}
	return nil
}
