package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const module = "module github.com/hoplite-net/hoplite\n"

// FindRoot finds the checkout: the directory with the product's go.mod, at or above the working directory.
func FindRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(content), module) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside a checkout of hoplite: run the lab from one", start)
		}
	}
}

// binary is a program of the product or of the lab.
func (c *Config) binary(name string) string { return filepath.Join(c.Root, "build/bin", name) }

// server is one of Kubernetes' programs. HOPLITE_SERVERS names another directory to take them from.
func (c *Config) server(name string) string {
	if dir := os.Getenv("HOPLITE_SERVERS"); dir != "" {
		return filepath.Join(dir, name)
	}
	return filepath.Join(c.Root, "build/servers", name)
}

func (l *Lab) inside() string { return l.cfg.binary("lab-inside") }

// Binary is the path of one of the product's programs: netctl, ...
func (l *Lab) Binary(name string) string { return l.cfg.binary(name) }

// check says, before anything is started, what is missing and how to get it.
func (c *Config) check() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab makes namespaces: run it as root")
	}
	nodes, err := completeNodes(c.Nodes)
	if err != nil {
		return err
	}
	c.Nodes = nodes
	needed := map[string]string{c.binary("lab-inside"): "make lab-binary"}
	if !c.NoControlPlane {
		for _, name := range []string{"hoplite-agent", "hoplite-controller", "hoplite-cni"} {
			needed[c.binary(name)] = "make build"
		}
		for _, name := range []string{"etcd", "kube-apiserver"} {
			needed[c.server(name)] = "make servers"
		}
	}
	for file, remedy := range needed {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("%w: run `%s` in %s first", err, remedy, c.Root)
		}
	}
	return nil
}

// referencePlugins are built from github.com/containernetworking/plugins, the
// version in this module's go.mod: what nodes chain after hoplite, and what
// benchmarks compare with.
var referencePlugins = []string{"meta/portmap", "meta/bandwidth", "main/loopback", "main/ptp", "ipam/host-local"}

func (c *Config) pluginsDir() string { return filepath.Join(c.Root, "build/cni-plugins") }

// plugins returns every CNI plugin a node has, by name.
func (c *Config) plugins() map[string]string {
	all := map[string]string{"hoplite": c.binary("hoplite-cni")}
	for _, p := range referencePlugins {
		all[filepath.Base(p)] = filepath.Join(c.pluginsDir(), filepath.Base(p))
	}
	return all
}

// BuildPlugins builds the reference CNI plugins that are missing. It says so through progress if it has to.
func BuildPlugins(ctx context.Context, root string, progress func(string)) error {
	c := Config{Root: root}
	if len(c.missingPlugins()) == 0 {
		return nil
	}
	if err := os.MkdirAll(c.pluginsDir(), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, filepath.Join(c.pluginsDir(), ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	missing := c.missingPlugins()
	if len(missing) == 0 {
		return nil
	}
	progress("building CNI plugins (once): " + strings.Join(missing, ", "))
	// Built aside and renamed, so that nobody runs half a file.
	aside, err := os.MkdirTemp(c.pluginsDir(), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", aside + "/"}
	for _, p := range missing {
		args = append(args, "github.com/containernetworking/plugins/plugins/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(root, "test")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the reference CNI plugins: %w\n%s", err, out)
	}
	for _, p := range missing {
		name := filepath.Base(p)
		if err := os.Rename(filepath.Join(aside, name), filepath.Join(c.pluginsDir(), name)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) missingPlugins() []string {
	var missing []string
	for _, p := range referencePlugins {
		if _, err := os.Stat(filepath.Join(c.pluginsDir(), filepath.Base(p))); err != nil {
			missing = append(missing, p)
		}
	}
	return missing
}

// lockFile takes a lock that ends with the process at the latest.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = until(ctx, 100*time.Millisecond, "lock "+path, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
