// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"frail/cmd/internal/config"
)

// settings are what of the configuration may change while fraild runs.
type settings struct {
	path   string
	must   bool // the file has to be there
	log    *slog.Logger
	level  *slog.LevelVar
	access atomic.Pointer[access]
	host   *host // nil until it is there
}

// clients returns who may do what at this moment.
func (s *settings) clients() access { return *s.access.Load() }

// load reads the configuration, as a daemon that starts does.
func (s *settings) load() (*config.Config, error) {
	loaded, err := config.Load(s.path, s.must)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	clients, err := newAccess(loaded.API.AdminGroup)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	s.access.Store(&clients)
	s.level.Set(slog.Level(loaded.Log.Level))
	return loaded.Config, nil
}

// reload reads the configuration again. What cannot hold at once is logged, and so is a
// mistake: everything stays as it was then.
func (s *settings) reload() {
	asked, err := s.load()
	if err != nil {
		s.log.Error("configuration is not changed", "err", err)
		return
	}
	now := *s.host.cfg.Load()
	var changed, later []string
	for _, key := range now.Changed(asked) {
		if slices.Contains(config.LiveKeys, key) {
			changed = append(changed, key)
		} else {
			later = append(later, key)
		}
	}
	now.SetLive(asked)
	s.host.cfg.Store(&now)
	s.log.Info("configuration is read again", "changed", strings.Join(changed, " "))
	if len(later) > 0 {
		s.log.Warn("changes that take a restart of fraild", "keys", strings.Join(later, " "))
	}
}
