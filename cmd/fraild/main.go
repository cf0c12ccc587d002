// SPDX-License-Identifier: Apache-2.0

// Command fraild arms the virtual machines whose libvirt metadata asks for it and serves
// their system calls to the frail command.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"frail/api"
	"frail/cmd/internal/config"
	"frail/cmd/internal/exit"
	"frail/hooks"
	"frail/qmp/layout"
)

// settleTimeout bounds how long the start waits for the domains that ask to be armed.
const settleTimeout = 20 * time.Second

// stopTimeout bounds how long clients may take to accept the end of their traces.
const stopTimeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal kills a daemon that does not end.
	context.AfterFunc(ctx, stop)

	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fraild:", err)
		os.Exit(int(exit.Of(err)))
	}
}

// run is the daemon. It returns nil when ctx ends it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("fraild", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "configuration `file` (default "+config.DefaultPath+", if it exists), with the drop-ins conf.d/*.toml beside it")
	version := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return exit.With(exit.Usage, err)
	}
	if flags.NArg() > 0 {
		return exit.Usagef("unexpected argument %q", flags.Arg(0))
	}
	if *version {
		fmt.Fprintln(stdout, "fraild", api.Version())
		return nil
	}
	must := *path != ""
	if !must {
		*path = config.DefaultPath
	}
	level := new(slog.LevelVar)
	log := newLogger(stderr, level)
	live := &settings{path: *path, must: must, log: log, level: level}
	cfg, err := live.load()
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	// From here on a reload is not the daemon's end.
	reloads := make(chan os.Signal, 1)
	signal.Notify(reloads, unix.SIGHUP)
	defer signal.Stop(reloads)
	listener, lock, err := listen(cfg.API.Socket, cfg.API.Group)
	if err != nil {
		return fmt.Errorf("open %s: %w", cfg.API.Socket, err)
	}
	defer lock.Close()
	defer listener.Close()
	var metrics net.Listener // nil: not asked for
	if at := cfg.Metrics.Listen; at != (config.ListenAddress{}) {
		var lock *os.File
		if metrics, lock, err = listenMetrics(at, cfg.API.Group); err != nil {
			return fmt.Errorf("open %s for metrics: %w", at.Address, err)
		}
		defer lock.Close()
		defer metrics.Close()
	}
	// The hook is an accelerator: without its socket domains are found all the same.
	hook, hookErr := hooks.ListenHook(cfg.Hook.Socket)
	if hookErr != nil {
		log.Warn("cannot listen to libvirt's qemu hook", "err", hookErr)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seq, rec := newSequences(cfg, log), newRecords(cfg, log)
	seq.alerted = rec.alert
	h := &host{
		log: log, sequences: seq, records: rec,
		layouts: layout.Resolver{Store: &layout.Store{Dir: cfg.Guest.LayoutDir}},
	}
	h.cfg.Store(cfg)
	live.host = h
	m := newManager(h)
	watched := make(chan error, 1)
	go func() {
		defer cancel()
		err := m.run(ctx, hooks.Options{
			URI:       cfg.Libvirt.URI,
			StatusDir: cfg.Libvirt.StatusDir,
			Hook:      hook,
			Log:       log,
		})
		seq.close()
		rec.close()
		watched <- err
	}()

	select {
	case <-m.ready:
	case <-ctx.Done():
		return <-watched
	}
	s := newServer(ctx, m)
	g := s.grpc(live.clients)
	served := make(chan error, 2)
	go func() { served <- serveError(cfg.API.Socket, g.Serve(listener)) }()
	if metrics != nil {
		ms := newMetricsServer(s, log)
		defer ms.Close()
		go func() { served <- serveError(cfg.Metrics.Listen.Address, ms.Serve(metrics)) }()
		log.Info("metrics are served", "address", metrics.Addr())
	}
	m.settle(ctx, settleTimeout)
	log.Info("ready", "version", api.Version(), "socket", cfg.API.Socket, "uri", cfg.Libvirt.URI)
	sd := &serviceManager{log: log, manager: m}
	sd.tell("READY=1")

	watchdog, stopWatchdog := sd.watchdog()
	defer stopWatchdog()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case err = <-served:
			cancel()
			running = false
		case <-watchdog:
			sd.alive()
		case <-reloads:
			sd.reloading()
			live.reload()
			sd.tell("READY=1")
		}
	}
	log.Info("stopping")
	sd.tell("STOPPING=1")
	force := time.AfterFunc(stopTimeout, g.Stop)
	g.GracefulStop()
	force.Stop()
	if werr := <-watched; werr != nil {
		return werr
	}
	return err
}

// serveError says what was served when err ended it; nil ended it in order.
func serveError(address string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("serve %s: %w", address, err)
}
