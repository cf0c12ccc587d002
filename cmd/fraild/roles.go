// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	"frail/api"
)

// role is what a client may do. Each includes those below it; the zero value is none.
type role int

const (
	// roleRead is everybody's whom the socket's mode lets connect.
	roleRead role = iota + 1
	// roleAdmin is root's, and that of the members of api.admin_group.
	roleAdmin
)

// methodRoles says what each method of the API takes. One that is missing is refused.
var methodRoles = map[string]role{
	api.Frail_Status_FullMethodName:        roleRead,
	api.Frail_List_FullMethodName:          roleRead,
	api.Frail_Stats_FullMethodName:         roleRead,
	api.Frail_Trace_FullMethodName:         roleRead,
	api.Frail_Doctor_FullMethodName:        roleRead,
	api.Frail_Alerts_FullMethodName:        roleRead,
	api.Frail_Profiles_FullMethodName:      roleRead,
	api.Frail_GetProfile_FullMethodName:    roleRead,
	api.Frail_PutProfile_FullMethodName:    roleAdmin,
	api.Frail_ChangeProfile_FullMethodName: roleAdmin,
	api.Frail_Threads_FullMethodName:       roleRead,
	api.Frail_Processes_FullMethodName:     roleRead,
	api.Frail_Layout_FullMethodName:        roleRead,
	api.Frail_KernelLog_FullMethodName:     roleRead,
	api.Frail_Records_FullMethodName:       roleRead,
	api.Frail_DumpRecord_FullMethodName:    roleRead,

	grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName:      roleRead,
	grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: roleRead,
}

// access decides what clients may do. The zero value lets only root change anything.
type access struct {
	adminGroup string
	adminGID   uint32 // of adminGroup, unless that is empty
}

// newAccess looks the group up whose members may change things; empty: root alone may. A
// group that does not exist is an error.
func newAccess(adminGroup string) (access, error) {
	if adminGroup == "" {
		return access{}, nil
	}
	g, err := user.LookupGroup(adminGroup)
	if err != nil {
		return access{}, fmt.Errorf("look up api.admin_group: %w", err)
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return access{}, fmt.Errorf("look up api.admin_group: %w", err)
	}
	return access{adminGroup: adminGroup, adminGID: uint32(gid)}, nil
}

// roleOf returns the role of a client.
func (a access) roleOf(p peerCred) role {
	if p.uid == 0 || a.adminGroup != "" && slices.Contains(p.gids, a.adminGID) {
		return roleAdmin
	}
	return roleRead
}

// check returns an error unless the client of ctx may call method.
func (a access) check(ctx context.Context, method string) error {
	need, known := methodRoles[method]
	if !known {
		return status.Errorf(codes.PermissionDenied, "permission denied: no role may call %s", method)
	}
	var cred peerCred
	p, ok := peer.FromContext(ctx)
	if ok {
		cred, ok = p.AuthInfo.(peerCred)
	}
	if !ok {
		return status.Errorf(codes.Unauthenticated, "permission denied: it is not known who calls %s", method)
	}
	if a.roleOf(cred) >= need {
		return nil
	}
	who := "root"
	if a.adminGroup != "" {
		who += " or a member of group '" + a.adminGroup + "' (api.admin_group)"
	} else {
		who += " (or a group that api.admin_group names)"
	}
	return status.Errorf(codes.PermissionDenied, "permission denied: %s takes %s, and user %d may only read", method, who, cred.uid)
}

// accessOptions makes a gRPC server ask, for every call, what holds then.
func accessOptions(current func() access) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(peerCredentials{}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := current().check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := current().check(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	}
}

// peerCred is who connected to a unix socket, as of then. It is the AuthInfo of its calls.
type peerCred struct {
	credentials.CommonAuthInfo
	uid  uint32
	gids []uint32 // the effective group and the supplementary ones
}

// AuthType implements credentials.AuthInfo.
func (peerCred) AuthType() string { return "unix" }

// peerCredentials are the transport credentials of a unix socket: the kernel says who the
// client is. Only servers use them.
type peerCredentials struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("identify client: %T is no unix socket", conn)
	}
	cred, err := peerOf(unixConn)
	if err != nil {
		return nil, nil, fmt.Errorf("identify client: %w", err)
	}
	return conn, cred, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }

// peerOf asks the kernel who connected. It needs Linux 4.13, for the supplementary groups.
func peerOf(conn *net.UnixConn) (peerCred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peerCred{}, err
	}
	var cred peerCred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		var u *unix.Ucred
		if u, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); sockErr != nil {
			return
		}
		cred.uid = u.Uid
		cred.gids, sockErr = peerGroups(fd)
		cred.gids = append(cred.gids, u.Gid)
	})
	if err == nil {
		err = sockErr
	}
	cred.SecurityLevel = credentials.PrivacyAndIntegrity
	return cred, err
}

// peerGroups returns the supplementary groups of a socket's peer: x/sys has no call for them.
func peerGroups(fd uintptr) ([]uint32, error) {
	gids := make([]uint32, 64)
	for {
		size := uint32(len(gids) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return gids[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(gids):
			gids = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
