package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
)

// artefact is the name of a file for one architecture.
func (b *build) artefact(arch, suffix string) string {
	return fmt.Sprintf("understudy-%s-linux-%s%s", debVersion(b.version, b.time), arch, suffix)
}

// writeTarball makes the tarball, for every system that is not Debian's.
func (b *build) writeTarball(arch string, contents []file) error {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range contents {
		if f.tar == "" {
			continue
		}
		data, err := os.ReadFile(f.src)
		if err != nil {
			return err
		}
		err = w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: b.artefact(arch, "/"+f.tar), Mode: f.mode, Size: int64(len(data)),
			ModTime: b.time, Uname: "root", Gname: "root", Format: tar.FormatUSTAR,
		})
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return b.add(b.artefact(arch, ".tar.gz"), compress(buf.Bytes()))
}

// writeSums lists the files that were made, for sha256sum -c.
func (b *build) writeSums() error {
	var buf bytes.Buffer
	for _, name := range b.made {
		data, err := os.ReadFile(filepath.Join(b.out, name)) //nolint:gosec // made by this program
		if err != nil {
			return err
		}
		fmt.Fprintf(&buf, "%x  %s\n", sha256.Sum256(data), name)
	}
	return b.add("SHA256SUMS", buf.Bytes())
}

// add writes a result.
func (b *build) add(name string, data []byte) error {
	b.made = append(b.made, name)
	return write(filepath.Join(b.out, name), data)
}
