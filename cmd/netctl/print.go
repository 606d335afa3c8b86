package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"
)

var outputs = []string{"table", "wide", "json", "yaml"}

func (o *options) checkOutput() error {
	if !slices.Contains(outputs, o.output) {
		return fmt.Errorf("--output %s: choose one of %s", o.output, strings.Join(outputs, ", "))
	}
	return nil
}

// print writes v as JSON or YAML, or lets it write its table.
func (o *options) print(w io.Writer, v view) error {
	switch o.output {
	case "json":
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", b)
		return err
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	return v.table(w, o.output == "wide")
}

// grid prints rows under headings, in columns as wide as they need to be.
// Empty cells show as "-".
func grid(w io.Writer, headings []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		cells := slices.Clone(row)
		for i, c := range cells {
			if c == "" {
				cells[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(t, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}
