// SPDX-License-Identifier: Apache-2.0

package vm

import "encoding/binary"

// EmptyDisk returns a qcow2 image (version 2) of one gigabyte of zeros.
func EmptyDisk() []byte {
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
