package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The last state seen is kept in a file below /run, for the one case in which
// nobody else can tell it: an agent that starts while the API server is away.
// It is read only then, and forgotten as soon as the API answers.

const rememberedFile = "cluster.json"

// Remember writes the state down, whole or not at all.
func Remember(dir string, state State) error {
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("remember the cluster's state: %w", err)
	}
	path := filepath.Join(dir, rememberedFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("remember the cluster's state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("remember the cluster's state: %w", err)
	}
	return nil
}

// Remembered is what Remember wrote last; ok is false when there is nothing,
// as after a reboot of the node.
func Remembered(dir string) (state State, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(dir, rememberedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err != nil {
		return State{}, false, fmt.Errorf("recall the cluster's state: %w", err)
	}
	return state, true, nil
}
