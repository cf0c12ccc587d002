// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"frail/api"
	"frail/hooks"
	"frail/qmp/layout"
	"frail/tracer"
	"frail/tracer/ph"
	"frail/tracer/profile"
	"frail/tracer/record"
	"frail/tracer/sequence"
)

// DefaultPath is read when no other file is asked for.
const DefaultPath = "/etc/frail/frail.toml"

// Bounds of configured values, MinRingBytes and maxRingBytes those of a ring buffer.
const (
	MinRingBytes = 64 << 10
	maxRingBytes = tracer.MaxRingBytes
	maxSessions  = 1024
)

// Config is what fraild is configured to do: sections of keys. packaging/frail.toml
// documents every key and shows its default.
type Config struct {
	Libvirt struct {
		URI       string `toml:"uri"`
		StatusDir string `toml:"status_dir"`
	} `toml:"libvirt"`
	API struct {
		Socket     string `toml:"socket"`
		Group      string `toml:"group"`
		AdminGroup string `toml:"admin_group"`
	} `toml:"api"`
	Hook struct {
		Socket string `toml:"socket"`
	} `toml:"hook"`
	Trace struct {
		RingBytes   int `toml:"ring_bytes"`
		MaxSessions int `toml:"max_sessions"`
	} `toml:"trace"`
	Guest struct {
		ResolveTimeout Duration `toml:"resolve_timeout"`
		LayoutDir      string   `toml:"layout_dir"`
	} `toml:"guest"`
	Sequence struct {
		Learn        bool         `toml:"learn"`
		Tolerize     uint32       `toml:"tolerize"`
		Anomaly      uint32       `toml:"anomaly"`
		Processes    uint32       `toml:"processes"`
		NormalWait   WaitDuration `toml:"normal_wait"`
		StateDir     string       `toml:"state_dir"`
		SaveInterval Duration     `toml:"save_interval"`
		ReapInterval Duration     `toml:"reap_interval"`
		MaxProfiles  int          `toml:"max_profiles"`
		MaxRows      int          `toml:"max_rows"`
		MaxThreads   int          `toml:"max_threads"`
		MaxAlerts    int          `toml:"max_alerts"`
	} `toml:"sequence"`
	Record struct {
		Seconds  int    `toml:"seconds"`
		MaxBytes int    `toml:"max_bytes"`
		Dir      string `toml:"dir"`
		MaxFiles int    `toml:"max_files"`
	} `toml:"record"`
	Metrics struct {
		Listen ListenAddress `toml:"listen"`
	} `toml:"metrics"`
	Log struct {
		Level Level `toml:"level"`
	} `toml:"log"`
}

// Duration is a time.Duration written as in "250ms".
type Duration time.Duration

// UnmarshalText parses what time.ParseDuration accepts, above zero.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("duration %s is not above zero", v)
	}
	*d = Duration(v)
	return nil
}

// WaitDuration is a duration as hooks.ParseDuration takes it: days and weeks too, and 0.
type WaitDuration time.Duration

// UnmarshalText parses what [hooks.ParseDuration] accepts.
func (d *WaitDuration) UnmarshalText(text []byte) error {
	v, err := hooks.ParseDuration(string(text))
	*d = WaitDuration(v)
	return err
}

// MarshalText writes d as UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) {
	text := time.Duration(d).String()
	// 5m0s, 1h0m0s
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-len("0s")]
		}
	}
	return []byte(text), nil
}

// MarshalText writes d as UnmarshalText reads it.
func (d WaitDuration) MarshalText() ([]byte, error) {
	const day = WaitDuration(24 * time.Hour)
	if d > 0 && d%day == 0 {
		return fmt.Appendf(nil, "%dd", d/day), nil
	}
	return Duration(d).MarshalText()
}

// ListenAddress is where this host alone is served: at a unix socket, or at a port of a
// loopback address. The zero value is nowhere.
type ListenAddress struct {
	Network, Address string // as for [net.Listen]
}

// UnmarshalText parses "", "unix:PATH" or "ADDRESS:PORT".
func (a *ListenAddress) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" {
		*a = ListenAddress{}
		return nil
	}
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q: %q is not an absolute path", s, path)
		}
		*a = ListenAddress{Network: "unix", Address: path}
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
	*a = ListenAddress{Network: "tcp", Address: s}
	return nil
}

// unixPrefix is how the address of a unix socket begins.
const unixPrefix = "unix:"

// MarshalText writes a as UnmarshalText reads it.
func (a ListenAddress) MarshalText() ([]byte, error) {
	if a.Network == "unix" {
		return []byte(unixPrefix + a.Address), nil
	}
	return []byte(a.Address), nil
}

// Level is how much is logged.
type Level slog.Level

// UnmarshalText parses the name of a level.
func (l *Level) UnmarshalText(text []byte) error {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(level.String(), string(text)) {
			*l = Level(level)
			return nil
		}
	}
	return fmt.Errorf("%q is not debug, info, warn or error", text)
}

// MarshalText writes l as packaging/frail.toml does.
func (l Level) MarshalText() ([]byte, error) {
	return []byte(strings.ToLower(slog.Level(l).String())), nil
}

// Default is what absent or empty files mean.
func Default() *Config {
	c := new(Config)
	c.Libvirt.URI = "qemu:///system"
	c.Libvirt.StatusDir = "/run/libvirt/qemu"
	c.API.Socket = api.DefaultSocket
	c.API.Group = "frail"
	c.Hook.Socket = "/run/frail/hook.sock"
	c.Trace.RingBytes = 8 << 20
	c.Trace.MaxSessions = 32
	c.Guest.ResolveTimeout = Duration(5 * time.Minute)
	c.Guest.LayoutDir = layout.DefaultStoreDir
	settings, limits := ph.DefaultSettings(), ph.DefaultLimits()
	c.Sequence.Learn = settings.Learn
	c.Sequence.Tolerize = settings.TolerizeLimit
	c.Sequence.Anomaly = settings.AnomalyLimit
	c.Sequence.Processes = settings.ProcessLimit
	c.Sequence.NormalWait = WaitDuration(settings.NormalWait)
	c.Sequence.StateDir = profile.DefaultDir
	c.Sequence.SaveInterval = Duration(time.Minute)
	c.Sequence.ReapInterval = Duration(30 * time.Second)
	c.Sequence.MaxProfiles = limits.Profiles
	c.Sequence.MaxRows = limits.Rows
	c.Sequence.MaxThreads = limits.Threads
	c.Sequence.MaxAlerts = 10000
	c.Record.MaxBytes = 64 << 20
	c.Record.Dir = profile.DefaultDir + "/records"
	c.Record.MaxFiles = 16
	c.Log.Level = Level(slog.LevelInfo)
	return c
}

// validate calls report for each value that is out of bounds.
func (c *Config) validate(report func(key, format string, args ...any)) {
	for _, p := range []struct{ key, path string }{
		{"libvirt.status_dir", c.Libvirt.StatusDir},
		{"api.socket", c.API.Socket},
		{"hook.socket", c.Hook.Socket},
		{"guest.layout_dir", c.Guest.LayoutDir},
		{"sequence.state_dir", c.Sequence.StateDir},
		{"record.dir", c.Record.Dir},
	} {
		if !filepath.IsAbs(p.path) {
			report(p.key, "%q is not an absolute path", p.path)
		}
	}
	if at := c.Metrics.Listen.Address; at == c.API.Socket || at == c.Hook.Socket {
		report("metrics.listen", "%s is another socket of fraild's", at)
	}
	if c.Libvirt.URI == "" {
		report("libvirt.uri", "is empty")
	}
	n := c.Trace.RingBytes
	if n < MinRingBytes || n > maxRingBytes || n&(n-1) != 0 {
		report("trace.ring_bytes", "%d is not a power of two from %d to %d", n, MinRingBytes, maxRingBytes)
	}
	for _, bound := range []struct {
		key            string
		n, least, most int
	}{
		{"trace.max_sessions", c.Trace.MaxSessions, 1, maxSessions},
		{"sequence.tolerize", int(c.Sequence.Tolerize), 0, ph.Frame - 1},
		{"sequence.anomaly", int(c.Sequence.Anomaly), 0, math.MaxInt32},
		{"sequence.processes", int(c.Sequence.Processes), 0, ph.MaxProcessLimit - 1},
		{"sequence.max_profiles", c.Sequence.MaxProfiles, 1, sequence.MaxProfiles},
		{"sequence.max_rows", c.Sequence.MaxRows, 1, math.MaxInt32},
		{"sequence.max_threads", c.Sequence.MaxThreads, 1, math.MaxInt32},
		{"sequence.max_alerts", c.Sequence.MaxAlerts, 1, 1 << 20},
		{"record.seconds", c.Record.Seconds, 0, hooks.MaxRecordSeconds},
		{"record.max_bytes", c.Record.MaxBytes, record.MinBytes, record.MaxBytes},
		{"record.max_files", c.Record.MaxFiles, 1, 1 << 20},
	} {
		if bound.n < bound.least || bound.n > bound.most {
			report(bound.key, "%d is not in %d to %d", bound.n, bound.least, bound.most)
		}
	}
}

// LiveKeys are those whose change holds as soon as the configuration is read again. The others
// make what is there once: sockets, connections, maps of the kernel.
var LiveKeys = []string{"api.admin_group", "trace.ring_bytes", "guest.resolve_timeout", "log.level"}

// SetLive takes the values of [LiveKeys] from other.
func (c *Config) SetLive(other *Config) {
	theirs := other.fields()
	for i, f := range c.fields() {
		if slices.Contains(LiveKeys, f.name()) {
			f.value.Set(theirs[i].value)
		}
	}
}

// Changed returns the keys, as "section.key", that other has other values of.
func (c *Config) Changed(other *Config) []string {
	var keys []string
	theirs := other.fields()
	for i, f := range c.fields() {
		if !f.value.Equal(theirs[i].value) {
			keys = append(keys, f.name())
		}
	}
	return keys
}

// field is a key of the configuration.
type field struct {
	section, key string
	value        reflect.Value // of a Config, to be set
}

// name is the key as users write it.
func (f field) name() string { return f.section + "." + f.key }

// fields lists the keys in the order of the struct.
func (c *Config) fields() []field {
	var list []field
	sections := reflect.ValueOf(c).Elem()
	for i := range sections.NumField() {
		section := sections.Field(i)
		for j := range section.NumField() {
			list = append(list, field{
				section: sections.Type().Field(i).Tag.Get("toml"),
				key:     section.Type().Field(j).Tag.Get("toml"),
				value:   section.Field(j),
			})
		}
	}
	return list
}
