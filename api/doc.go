// SPDX-License-Identifier: Apache-2.0

// Package api is the gRPC interface of fraild: messages, client and server
// generated from frail.proto, and where both sides find each other.
//
// The server offers gRPC reflection, so grpcurl -unix and similar tools need no
// copy of the schema.
package api

//go:generate ./generate.sh .

// DefaultSocket is the unix socket fraild listens on unless configured otherwise.
const DefaultSocket = "/run/frail/frail.sock"

// MaxEvents is the largest number of events in one Events message: with about
// 200 bytes each it stays far below gRPC's message limit of 4 MiB.
const MaxEvents = 512
