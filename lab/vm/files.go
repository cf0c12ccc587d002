// SPDX-License-Identifier: Apache-2.0

//go:build life

package vm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// extendInitrd writes a guest's initramfs with cfg.Files before it, and returns its path.
func extendInitrd(cfg Config) (string, error) {
	// The kernel unpacks archives that stand behind one another into one root.
	var archive bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(cfg.Files)) {
		data, err := os.ReadFile(cfg.Files[name])
		if err != nil {
			return "", err
		}
		addFile(&archive, name, 0o100644, data)
	}
	addFile(&archive, "TRAILER!!!", 0, nil)
	initrd, err := os.ReadFile(cfg.Initrd)
	if err != nil {
		return "", err
	}
	archive.Write(initrd)
	path := filepath.Join(dir, cfg.Name+".initrd")
	return path, os.WriteFile(path, archive.Bytes(), 0o644)
}

// addFile adds an entry to a cpio archive of the "newc" format, whose parts are aligned to 4
// bytes.
func addFile(archive *bytes.Buffer, name string, mode uint32, data []byte) {
	align := func() { archive.Write(make([]byte, -archive.Len()&3)) }
	archive.WriteString("070701")
	for _, field := range []uint32{
		0, mode, 0, 0, 1, 0, uint32(len(data)), // inode, mode, uid, gid, links, time, size
		0, 0, 0, 0, uint32(len(name) + 1), 0, // devices, size of the name, no checksum
	} {
		fmt.Fprintf(archive, "%08X", field)
	}
	archive.WriteString(name + "\x00")
	align()
	archive.Write(data)
	align()
}

// emptyDisk is a qcow2 image (version 2) of one gigabyte of zeros.
func emptyDisk() []byte {
	const (
		clusterBits = 16
		cluster     = 1 << clusterBits
		size        = 1 << 30
		l1Entries   = size / cluster / (cluster / 8)

		refcountTable, refcounts, l1Table, clusters = 1, 2, 3, 4 // in clusters
	)
	image := make([]byte, clusters*cluster)
	header := []any{
		[]byte("QFI\xfb"), uint32(2), // version
		uint64(0), uint32(0), // no backing file
		uint32(clusterBits), uint64(size), uint32(0), // not encrypted
		uint32(l1Entries), uint64(l1Table * cluster),
		uint64(refcountTable * cluster), uint32(1),
		uint32(0), uint64(0), // no snapshots
	}
	at := image[:0]
	for _, field := range header {
		// Appending fixed-size values cannot fail.
		at, _ = binary.Append(at, binary.BigEndian, field)
	}
	binary.BigEndian.PutUint64(image[refcountTable*cluster:], refcounts*cluster)
	for i := range clusters {
		binary.BigEndian.PutUint16(image[refcounts*cluster+2*i:], 1)
	}
	return image
}
