// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"frail/api"
	"frail/hooks"
	"frail/qmp/layout"
	"frail/tracer"
	"frail/tracer/ph"
	"frail/tracer/profile"
	"frail/tracer/sequence"
)

// defaultConfigPath is read when no --config is given.
const defaultConfigPath = "/etc/frail/frail.toml"

// maxConfigBytes bounds the configuration file: the shipped one is 3 KiB.
const maxConfigBytes = 1 << 20

// Bounds of configured values.
const (
	minRingBytes = 64 << 10
	maxRingBytes = tracer.MaxRingBytes
	maxSessions  = 1024
)

// config is the daemon's configuration file. packaging/frail.toml documents every key
// and shows its default.
type config struct {
	Libvirt struct {
		URI       string `toml:"uri"`
		StatusDir string `toml:"status_dir"`
	} `toml:"libvirt"`
	API struct {
		Socket string `toml:"socket"`
		Group  string `toml:"group"`
	} `toml:"api"`
	Hook struct {
		Socket string `toml:"socket"`
	} `toml:"hook"`
	Trace struct {
		RingBytes   int `toml:"ring_bytes"`
		MaxSessions int `toml:"max_sessions"`
	} `toml:"trace"`
	Guest struct {
		ResolveTimeout duration `toml:"resolve_timeout"`
		LayoutDir      string   `toml:"layout_dir"`
	} `toml:"guest"`
	Sequence struct {
		Learn        bool         `toml:"learn"`
		Tolerize     uint32       `toml:"tolerize"`
		Anomaly      uint32       `toml:"anomaly"`
		Processes    uint32       `toml:"processes"`
		NormalWait   waitDuration `toml:"normal_wait"`
		StateDir     string       `toml:"state_dir"`
		SaveInterval duration     `toml:"save_interval"`
		ReapInterval duration     `toml:"reap_interval"`
		MaxProfiles  int          `toml:"max_profiles"`
		MaxRows      int          `toml:"max_rows"`
		MaxThreads   int          `toml:"max_threads"`
		MaxAlerts    int          `toml:"max_alerts"`
	} `toml:"sequence"`
	Metrics struct {
		Listen listenAddress `toml:"listen"`
	} `toml:"metrics"`
	Log struct {
		Level slog.Level `toml:"level"`
	} `toml:"log"`
}

// listenAddress is where this host alone is served: at a unix socket, or at a port of a
// loopback address. The zero value is nowhere.
type listenAddress struct {
	Network, Address string // as for [net.Listen]
}

// UnmarshalText parses "", "unix:PATH" or "ADDRESS:PORT".
func (a *listenAddress) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" {
		*a = listenAddress{}
		return nil
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q: %q is not an absolute path", s, path)
		}
		*a = listenAddress{"unix", path}
		return nil
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return fmt.Errorf("%q is neither \"unix:/PATH\" nor a loopback address with a port, as \"127.0.0.1:9472\"", s)
	}
	if !at.Addr().IsLoopback() {
		return fmt.Errorf("%q: %s is not a loopback address: nothing asks a client who it is there, so other hosts must not reach it", s, at.Addr())
	}
	if at.Port() == 0 {
		return fmt.Errorf("%q: no client would know port 0", s)
	}
	*a = listenAddress{"tcp", s}
	return nil
}

// duration is a time.Duration written as in "250ms".
type duration time.Duration

// UnmarshalText parses what time.ParseDuration accepts, above zero.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("duration %s is not above zero", v)
	}
	*d = duration(v)
	return nil
}

// waitDuration is a duration as hooks.ParseDuration takes it: days and weeks too, and 0.
type waitDuration time.Duration

// UnmarshalText parses what [hooks.ParseDuration] accepts.
func (d *waitDuration) UnmarshalText(text []byte) error {
	v, err := hooks.ParseDuration(string(text))
	*d = waitDuration(v)
	return err
}

// defaultConfig is what an absent or empty file means.
func defaultConfig() *config {
	c := new(config)
	c.Libvirt.URI = "qemu:///system"
	c.Libvirt.StatusDir = "/run/libvirt/qemu"
	c.API.Socket = api.DefaultSocket
	c.API.Group = "frail"
	c.Hook.Socket = "/run/frail/hook.sock"
	c.Trace.RingBytes = 8 << 20
	c.Trace.MaxSessions = 32
	c.Guest.ResolveTimeout = duration(5 * time.Minute)
	c.Guest.LayoutDir = layout.DefaultStoreDir
	settings, limits := ph.DefaultSettings(), ph.DefaultLimits()
	c.Sequence.Learn = settings.Learn
	c.Sequence.Tolerize = settings.TolerizeLimit
	c.Sequence.Anomaly = settings.AnomalyLimit
	c.Sequence.Processes = settings.ProcessLimit
	c.Sequence.NormalWait = waitDuration(settings.NormalWait)
	c.Sequence.StateDir = profile.DefaultDir
	c.Sequence.SaveInterval = duration(time.Minute)
	c.Sequence.ReapInterval = duration(30 * time.Second)
	c.Sequence.MaxProfiles = limits.Profiles
	c.Sequence.MaxRows = limits.Rows
	c.Sequence.MaxThreads = limits.Threads
	c.Sequence.MaxAlerts = 10000
	c.Log.Level = slog.LevelInfo
	return c
}

// loadConfig reads the configuration at path. A file that does not exist is an error
// only when must is set.
func loadConfig(path string, must bool) (*config, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !must {
		return defaultConfig(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > maxConfigBytes {
		return nil, fmt.Errorf("read configuration: %s is larger than %d bytes", path, maxConfigBytes)
	}
	c, err := parseConfig(string(text))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %s: %w", path, err)
	}
	return c, nil
}

// parseConfig lays text over the defaults. Errors name the line.
func parseConfig(text string) (*config, error) {
	c := defaultConfig()
	meta, err := toml.Decode(text, c)
	if err != nil {
		return nil, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("line %d: unknown key %q", keyLine(text, unknown[0]), unknown[0].String())
	}
	return c, c.validate()
}

// unknownKey refuses every value, to learn where it stands.
type unknownKey struct{}

// UnmarshalTOML always fails.
func (unknownKey) UnmarshalTOML(any) error { return errors.New("unknown key") }

// keyLine returns the line of key in text, 0 when it cannot be told. The toml package
// gives the position of a key only in the errors of a value that does not decode.
func keyLine(text string, key toml.Key) int {
	typ := reflect.TypeFor[unknownKey]()
	for i := len(key) - 1; i >= 0; i-- {
		typ = reflect.StructOf([]reflect.StructField{{
			Name: "Key",
			Type: typ,
			Tag:  reflect.StructTag("toml:" + strconv.Quote(key[i])),
		}})
	}
	_, err := toml.Decode(text, reflect.New(typ).Interface())
	if pe, ok := errors.AsType[toml.ParseError](err); ok {
		return pe.Position.Line
	}
	return 0
}

func (c *config) validate() error {
	for key, path := range map[string]string{
		"libvirt.status_dir": c.Libvirt.StatusDir,
		"api.socket":         c.API.Socket,
		"hook.socket":        c.Hook.Socket,
		"guest.layout_dir":   c.Guest.LayoutDir,
		"sequence.state_dir": c.Sequence.StateDir,
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q is not an absolute path", key, path)
		}
	}
	if at := c.Metrics.Listen.Address; at == c.API.Socket || at == c.Hook.Socket {
		return fmt.Errorf("metrics.listen: %s is another socket of fraild's", at)
	}
	if c.Libvirt.URI == "" {
		return errors.New("libvirt.uri is empty")
	}
	n := c.Trace.RingBytes
	if n < minRingBytes || n > maxRingBytes || n&(n-1) != 0 {
		return fmt.Errorf("trace.ring_bytes: %d is not a power of two from %d to %d", n, minRingBytes, maxRingBytes)
	}
	if n := c.Trace.MaxSessions; n < 1 || n > maxSessions {
		return fmt.Errorf("trace.max_sessions: %d is not in 1 to %d", n, maxSessions)
	}
	for _, bound := range []struct {
		key            string
		n, least, most int
	}{
		{"tolerize", int(c.Sequence.Tolerize), 0, ph.Frame - 1},
		{"anomaly", int(c.Sequence.Anomaly), 0, math.MaxInt32},
		{"processes", int(c.Sequence.Processes), 0, ph.MaxProcessLimit - 1},
		{"max_profiles", c.Sequence.MaxProfiles, 1, sequence.MaxProfiles},
		{"max_rows", c.Sequence.MaxRows, 1, math.MaxInt32},
		{"max_threads", c.Sequence.MaxThreads, 1, math.MaxInt32},
		{"max_alerts", c.Sequence.MaxAlerts, 1, 1 << 20},
	} {
		if bound.n < bound.least || bound.n > bound.most {
			return fmt.Errorf("sequence.%s: %d is not in %d to %d", bound.key, bound.n, bound.least, bound.most)
		}
	}
	return nil
}
