// Command image writes Hoplite's container image as an archive that
// `ctr images import` and `docker load` take. It needs no registry and no daemon:
// the image is the programs, and the iptables tools of the machine it runs on
// (Debian's, with the libraries they load), for the agent calls them.
//
//	image -bin build/bin -name hoplite:v1 -o build/image/hoplite.tar
package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

var (
	programs = []string{"hoplite-agent", "hoplite-controller", "hoplite-cni", "netctl"}
	// The two back ends; every other iptables command is a link to one of them.
	multi = map[string][]string{
		"/usr/sbin/xtables-nft-multi":    {"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore"},
		"/usr/sbin/xtables-legacy-multi": {"iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore"},
	}
	libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64"}
)

func main() {
	bin := flag.String("bin", "build/bin", "folder of the programs")
	tag := flag.String("name", "hoplite:devel", "the image's name")
	out := flag.String("o", "build/image/hoplite.tar", "archive to write")
	arch := flag.String("arch", "amd64", "architecture of the programs")
	flag.Parse()
	if err := build(*bin, *tag, *arch, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func build(bin, tag, arch, out string) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	tools, err := toolFiles()
	if err != nil {
		return err
	}
	files := map[string]string{}
	for _, program := range programs {
		files["/usr/local/bin/"+program] = filepath.Join(bin, program)
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: arch, OS: "linux",
		Config: v1.Config{
			Env:        []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Entrypoint: []string{"/usr/local/bin/hoplite-agent"},
		},
	})
	if err != nil {
		return err
	}
	// The tools change rarely, the programs always: a layer each.
	for _, layer := range []map[string]string{tools, files} {
		if image, err = addLayer(image, layer); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := tarball.WriteToFile(out+".new", ref, image); err != nil {
		return err
	}
	if err := os.Rename(out+".new", out); err != nil {
		return err
	}
	info, err := os.Stat(out)
	if err != nil {
		return err
	}
	digest, err := image.Digest()
	fmt.Printf("%s: %s, %s, %d MB\n", out, ref.Name(), digest, info.Size()>>20)
	return err
}

func addLayer(image v1.Image, files map[string]string) (v1.Image, error) {
	content, err := archive(files)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layer)
}

// archive is a tar of the files (where in the image → where here; "→x" is a
// link to x). Names in order and no times: the same files are the same bytes.
func archive(files map[string]string) ([]byte, error) {
	dirs := map[string]bool{"/run": true} // for iptables' lock
	for target := range files {
		for dir := path.Dir(target); dir != "/"; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, dir := range sorted(dirs) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, target := range sorted(files) {
		if to, link := strings.CutPrefix(files[target], "→"); link {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: target[1:], Linkname: to, Mode: 0o777}); err != nil {
				return nil, err
			}
			continue
		}
		content, err := os.ReadFile(files[target])
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: target[1:], Mode: 0o755, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buffer.Bytes(), err
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// toolFiles are the iptables tools, their extensions, and every library these load.
func toolFiles() (map[string]string, error) {
	files := map[string]string{}
	for tool, links := range multi {
		if err := addELF(files, tool); err != nil {
			return nil, fmt.Errorf("iptables, which the agent calls: %w (install Debian's package iptables)", err)
		}
		for _, link := range links {
			files["/usr/sbin/"+link] = "→" + filepath.Base(tool)
		}
	}
	files["/usr/sbin/iptables"], files["/usr/sbin/ip6tables"] = "→iptables-nft", "→ip6tables-nft"
	for _, dir := range libraryDirs {
		extensions, err := filepath.Glob(filepath.Join(dir, "xtables", "*.so"))
		if err != nil {
			return nil, err
		}
		for _, extension := range extensions {
			if strings.HasPrefix(dir, "/lib/") {
				continue // the same folder by its old name
			}
			if err := addELF(files, extension); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// addELF adds a program or library, with the loader and libraries it names.
func addELF(files map[string]string, file string) error {
	if _, done := files[file]; done {
		return nil
	}
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	files[file] = file
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, section := range f.Progs {
		if section.Type == elf.PT_INTERP {
			loader, err := io.ReadAll(section.Open())
			if err != nil {
				return err
			}
			files[string(bytes.TrimRight(loader, "\x00"))] = string(bytes.TrimRight(loader, "\x00"))
		}
	}
	for _, library := range libraries {
		where, err := find(library)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := addELF(files, where); err != nil {
			return err
		}
	}
	return nil
}

func find(library string) (string, error) {
	for _, dir := range libraryDirs {
		file := filepath.Join(dir, library)
		if _, err := os.Stat(file); err == nil {
			return file, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("library %s not found in %v", library, libraryDirs)
}
