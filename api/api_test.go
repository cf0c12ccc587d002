// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"frail/api"
)

// The checked-in code is what frail.proto generates.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("./generate.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("generate: %v\n%s", err, out)
	}
	for _, name := range []string{"frail.pb.go", "frail_grpc.pb.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what frail.proto generates: run go generate ./api", name)
		}
	}
}

// A full batch of the largest events fits in a message of gRPC's default limit.
func TestMaxEventsFit(t *testing.T) {
	const limit = 4 << 20
	batch := new(api.Events)
	for range api.MaxEvents {
		batch.Events = append(batch.Events, &api.Event{
			Time: 1<<64 - 1, Vm: 1<<32 - 1, Vcpu: 1<<32 - 1, Kind: 1<<32 - 1, Insn: 1<<32 - 1, Flags: 1<<32 - 1,
			Nr: -1 << 63, Args: make([]uint64, 6), Ret: -1 << 63, Ip: 1<<64 - 1, Sp: 1<<64 - 1, Cr3: 1<<64 - 1,
			Task: 1<<64 - 1, Pid: -1, Tgid: -1, Comm: make([]byte, 16),
		})
	}
	size := proto.Size(&api.TraceResponse{Record: &api.TraceResponse_Events{Events: batch}})
	if size > limit/8 {
		t.Errorf("%d events take %d bytes", api.MaxEvents, size)
	}
}
