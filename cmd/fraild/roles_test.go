// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"frail/api"
)

// Every method that is served has a role, and every role is of a method that is served.
func TestEveryMethodHasARole(t *testing.T) {
	served := make(map[string]bool)
	for service, info := range testServer(t).grpc(rootOnly).GetServiceInfo() {
		for _, m := range info.Methods {
			name := "/" + service + "/" + m.Name
			served[name] = true
			if r := methodRoles[name]; r != roleRead && r != roleAdmin {
				t.Errorf("%s has no role", name)
			}
		}
	}
	for name := range methodRoles {
		if !served[name] {
			t.Errorf("%s has a role and is not served", name)
		}
	}
}

// roleClientEnv makes the test binary call the API at the socket it names.
const roleClientEnv = "FRAIL_TEST_ROLE_CLIENT"

// TestRoleClient is no test: TestRoles runs it as other users.
func TestRoleClient(t *testing.T) {
	socket := os.Getenv(roleClientEnv)
	if socket == "" {
		t.Skip("run by TestRoles")
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := api.NewFrailClient(conn)
	if _, err := client.List(ctx, &api.ListRequest{All: true}); err != nil {
		t.Fatalf("reading: %v", err)
	}
	alerts, err := client.Alerts(ctx, &api.AlertsRequest{})
	if err == nil {
		_, err = alerts.Recv()
	}
	if c := status.Code(err); c == codes.PermissionDenied || c == codes.Unauthenticated {
		t.Fatalf("reading a stream: %v", err)
	}
	_, err = client.ChangeProfile(ctx, &api.ChangeProfileRequest{Profile: &api.ProfileName{Domain: "none"}})
	os.Stdout.WriteString("CHANGE " + status.Code(err).String() + " " + status.Convert(err).Message() + "\n")
}

// Everybody who may connect may read; root and the members of the admin group may change.
func TestRoles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be other users")
	}
	dir, err := os.MkdirTemp("/tmp", "frail-roles")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe := filepath.Join(dir, "client")
	bin, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, bin, 0o755)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	const gid = 54321
	many := make([]uint32, 100) // more than are asked for at first
	for i := range many {
		many[i] = uint32(60000 + i)
	}
	admins := access{adminGroup: "admins", adminGID: gid}
	for _, c := range []struct {
		name   string
		access access
		cred   syscall.Credential
		code   codes.Code
		says   string
	}{
		{"root", access{}, syscall.Credential{}, codes.NotFound, ""},
		{"a user, no admin group", access{}, syscall.Credential{Uid: 54000, Gid: gid}, codes.PermissionDenied, "takes root (or a group that api.admin_group names), and user 54000 may only read"},
		{"a user of group 0", access{}, syscall.Credential{Uid: 54000, Gid: 0}, codes.PermissionDenied, "may only read"},
		{"a user of another group", admins, syscall.Credential{Uid: 54000, Gid: 54000}, codes.PermissionDenied, "member of group 'admins' (api.admin_group)"},
		{"first group", admins, syscall.Credential{Uid: 54000, Gid: gid}, codes.NotFound, ""},
		{"supplementary group", admins, syscall.Credential{Uid: 54000, Gid: 54000, Groups: append(many, gid)}, codes.NotFound, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := filepath.Join(dir, "s")
			l, err := net.Listen("unix", socket)
			if err == nil {
				err = os.Chmod(socket, 0o666)
			}
			if err != nil {
				t.Fatal(err)
			}
			g := testServer(t, stateOf("one", 1)).grpc(func() access { return c.access })
			go g.Serve(l)
			defer g.Stop()
			cmd := exec.Command(exe, "-test.run=^TestRoleClient$", "-test.v")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), roleClientEnv+"="+socket)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &c.cred}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("client: %v\n%s", err, out)
			}
			if !strings.Contains(string(out), "CHANGE "+c.code.String()+" ") || !strings.Contains(string(out), c.says) {
				t.Errorf("got %s, want code %s and %q", out, c.code, c.says)
			}
		})
	}
}

// A group that does not exist is an error, not nobody's role.
func TestAdminGroupMustExist(t *testing.T) {
	if _, err := newAccess("no-such-group-of-frail"); err == nil || !strings.Contains(err.Error(), "api.admin_group") {
		t.Errorf("got %v", err)
	}
	a, err := newAccess("root")
	if err != nil || a.adminGroup != "root" || a.adminGID != 0 {
		t.Errorf("got %+v, %v", a, err)
	}
}

// rootOnly lets root alone change things.
func rootOnly() access { return access{} }
