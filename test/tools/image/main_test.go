package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// An image of stand-in programs and the machine's real iptables: the same
// inputs give the same image, and all that the iptables tools load is in it.
func TestImageIsReproducibleAndComplete(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/xtables-nft-multi"); err != nil {
		if os.Getenv("HOPLITE_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs Debian's iptables: ", err)
	}
	bin := t.TempDir()
	for _, program := range programs {
		if err := os.WriteFile(filepath.Join(bin, program), []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var digests [2]string
	for i := range digests {
		out := filepath.Join(t.TempDir(), "image.tar")
		if err := build(bin, "hoplite:test", "amd64", out); err != nil {
			t.Fatal(err)
		}
		image, err := tarball.ImageFromPath(out, nil)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests[i] = digest.String()
		layers, err := image.Layers()
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, layer := range layers {
			r, err := layer.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			// A tar without its end is one that other readers refuse.
			if !bytes.HasSuffix(content, make([]byte, 1024)) {
				t.Error("a layer does not end as a tar does")
			}
			for archive := tar.NewReader(bytes.NewReader(content)); ; {
				header, err := archive.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				names[header.Name] = true
			}
		}
		for _, want := range []string{"usr/local/bin/hoplite-agent", "usr/sbin/iptables-nft", "usr/sbin/ip6tables-legacy", "usr/sbin/xtables-nft-multi"} {
			if !names[want] {
				t.Errorf("%s is not in the image", want)
			}
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("twice the same inputs, two images: %v", digests)
	}
}
