// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	statusSuffix = ".xml"
	pidSuffix    = ".pid"

	// maxStatusFiles bounds the domains followed. libvirt itself lists no more
	// (REMOTE_DOMAIN_LIST_MAX).
	maxStatusFiles = 16384

	// maxCommandLine bounds what is read of an emulator's command line; libvirt
	// puts -uuid within its first few kilobytes.
	maxCommandLine = 1 << 20

	// maxPIDFile bounds a pid file: a number and a newline.
	maxPIDFile = 32

	// inotifyBuffer holds many events of one read; one event takes at most
	// SizeofInotifyEvent + NAME_MAX + 1 bytes.
	inotifyBuffer = 64 << 10

	// statusMask is what can change a status file (libvirt writes NAME.xml.new
	// and renames it) or end the directory itself.
	statusMask = unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CLOSE_WRITE | unix.IN_DELETE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

	// parentMask is what can bring a missing directory into being.
	parentMask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
)

var errNotEmulator = errors.New("the process is not this domain's emulator")

// statusSource follows libvirt's status directory and the emulators it names.
type statusSource struct {
	dir  string
	log  *slog.Logger
	send func(func(*machine)) bool
	wg   sync.WaitGroup // one for each emulator watched

	// mu makes one step of reading and sending, so that an older reading is
	// never sent after a newer one.
	mu        sync.Mutex
	emulators map[string]emulator // by status file
	released  bool
}

// emulator is a process whose exit is awaited.
type emulator struct {
	pid   int
	pidfd *os.File // non-blocking, in the runtime's poller
}

func newStatusSource(dir string, log *slog.Logger, send func(func(*machine)) bool) *statusSource {
	return &statusSource{dir: dir, log: log, send: send, emulators: make(map[string]emulator)}
}

// directoryWatch is an inotify instance on the status directory or, while that
// does not exist, on the nearest ancestor that does.
type directoryWatch struct {
	inotify *os.File
	exists  bool // the status directory is what is watched
}

// watch starts watching the directory.
func (s *statusSource) watch() (*directoryWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", s.dir, err)
	}
	w := &directoryWatch{inotify: os.NewFile(uintptr(fd), "inotify")}
	for dir, below := s.dir, ""; ; {
		mask := uint32(statusMask)
		if dir != s.dir {
			mask = parentMask
		}
		_, err := unix.InotifyAddWatch(fd, dir, mask)
		switch {
		case errors.Is(err, unix.ENOENT) && filepath.Dir(dir) != dir:
			dir, below = filepath.Dir(dir), dir
			continue
		case err != nil:
			w.inotify.Close()
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		case below != "":
			// The child may have come into being before the watch on its parent.
			if _, err := os.Stat(below); err == nil {
				dir, below = s.dir, ""
				continue
			}
		}
		w.exists = dir == s.dir
		return w, nil
	}
}

// run follows the directory until ctx is done. It closes ready when the
// directory as it was found has been sent.
func (s *statusSource) run(ctx context.Context, ready chan<- struct{}) error {
	defer s.wg.Wait()
	defer s.release()
	for {
		w, err := s.watch()
		if err != nil {
			return err
		}
		if err := s.scan(w); err != nil {
			w.inotify.Close()
			return err
		}
		if ready != nil {
			close(ready)
			ready = nil
		}
		// Comes back without an error when the directory came or went.
		err = s.follow(ctx, w)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// release ends the wait for every emulator; refresh does nothing any more.
func (s *statusSource) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
	for file := range s.emulators {
		s.unwatchEmulator(file)
	}
}

// follow handles w's events until the directory must be watched anew, which is
// no error, and closes w.
func (s *statusSource) follow(ctx context.Context, w *directoryWatch) error {
	defer context.AfterFunc(ctx, func() { w.inotify.Close() })()
	defer w.inotify.Close()

	buf := make([]byte, inotifyBuffer)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return fmt.Errorf("read inotify events: %w", err)
		}
		if !w.exists {
			return nil
		}
		ev, err := parseInotify(buf[:n])
		if err != nil {
			return err
		}
		if ev.gone {
			return nil
		}
		if ev.overflow {
			s.log.Warn("inotify queue overflowed, reading all status files again", "dir", s.dir)
			if err := s.scan(w); err != nil {
				return err
			}
			continue
		}
		for _, file := range ev.files {
			s.refresh(file)
		}
	}
}

// inotifyEvents is what a read from inotify asks for.
type inotifyEvents struct {
	files    []string // status files that changed, without suffix, each once
	overflow bool     // events were dropped
	gone     bool     // the directory was removed, moved or unmounted
}

func parseInotify(buf []byte) (inotifyEvents, error) {
	var (
		ev   inotifyEvents
		seen = make(map[string]bool)
	)
	for len(buf) > 0 {
		if len(buf) < unix.SizeofInotifyEvent {
			return ev, errors.New("read inotify events: short event")
		}
		mask := binary.NativeEndian.Uint32(buf[4:])
		size := binary.NativeEndian.Uint32(buf[12:])
		buf = buf[unix.SizeofInotifyEvent:]
		if uint64(size) > uint64(len(buf)) {
			return ev, errors.New("read inotify events: short name")
		}
		name := string(bytes.TrimRight(buf[:size], "\x00"))
		buf = buf[size:]

		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			ev.overflow = true
		case mask&(unix.IN_IGNORED|unix.IN_UNMOUNT|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
			ev.gone = true
		case mask&unix.IN_ISDIR != 0:
		default:
			if file, ok := strings.CutSuffix(name, statusSuffix); ok && file != "" && !seen[file] {
				seen[file] = true
				ev.files = append(ev.files, file)
			}
		}
	}
	return ev, nil
}

// scan reads the whole directory and sends it.
func (s *statusSource) scan(w *directoryWatch) error {
	s.mu.Lock()
	defer s.mu.Unlock()

	scan := make(map[string]*statusDomain)
	if w.exists {
		files, err := statusFiles(s.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, file := range files {
			if d := s.read(file); d != nil {
				scan[file] = d
			}
		}
	} else {
		s.log.Info("libvirt's status directory does not exist yet, waiting for it", "dir", s.dir)
	}
	for file := range s.emulators {
		if scan[file] == nil {
			s.unwatchEmulator(file)
		}
	}
	s.send(func(m *machine) { m.statusScan(scan) })
	return nil
}

// statusFiles returns the names of dir's status files, without suffix.
func statusFiles(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("list status directory: %w", err)
	}
	defer d.Close()
	var files []string
	for {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if file, ok := strings.CutSuffix(name, statusSuffix); ok && file != "" {
				files = append(files, file)
			}
		}
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list status directory: %w", err)
		}
		if len(files) > maxStatusFiles {
			return nil, fmt.Errorf("list status directory: more than %d files", maxStatusFiles)
		}
	}
}

// refresh reads one status file and sends it. It is safe for concurrent use.
func (s *statusSource) refresh(file string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released {
		return
	}
	d := s.read(file)
	if d == nil {
		s.unwatchEmulator(file)
	}
	s.send(func(m *machine) { m.statusFile(file, d) })
}

// read returns what there is to learn from one status file, nil if there is
// nothing, and awaits the exit of the emulator it names. mu is held.
func (s *statusSource) read(file string) *statusDomain {
	log := s.log.With("file", filepath.Join(s.dir, file+statusSuffix))
	d, err := readStatusFile(filepath.Join(s.dir, file+statusSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		log.Error("cannot read status file, using the pid file", "err", err)
		d = &statusDomain{name: file, configless: true, configErr: fmt.Errorf("read status file: %w", err)}
		if d.pid, err = readPIDFile(filepath.Join(s.dir, file+pidSuffix)); err != nil {
			log.Error("cannot read pid file", "err", err)
			return nil
		}
	}
	if d.pid == 0 {
		s.unwatchEmulator(file)
		return d
	}

	err = s.watchEmulator(file, d)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, fs.ErrNotExist):
		d.exited = true
	case err != nil:
		log.Error("cannot follow the emulator", "pid", d.pid, "err", err)
		d.exited = errors.Is(err, errNotEmulator)
		d.pid, d.launched = 0, false
	}
	if err != nil {
		s.unwatchEmulator(file)
		if d.uuid == "" {
			return nil
		}
	}
	return d
}

// watchEmulator checks that d.pid is d's emulator and sends its exit when it
// comes. The process is held by its pidfd before it is looked at, so that what
// was checked is what is awaited. mu is held.
func (s *statusSource) watchEmulator(file string, d *statusDomain) error {
	e, ok := s.emulators[file]
	if !ok || e.pid != d.pid {
		s.unwatchEmulator(file)
		fd, err := unix.PidfdOpen(d.pid, unix.PIDFD_NONBLOCK)
		if err != nil {
			return fmt.Errorf("open process: %w", err)
		}
		e = emulator{pid: d.pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}
		s.emulators[file] = e
		s.wg.Go(func() { s.awaitExit(file, e) })
	}
	if !d.launched && !d.configless {
		// libvirt's own child, before it becomes the emulator.
		return nil
	}
	uuid, err := commandLineUUID(d.pid)
	if hasExited(e.pidfd) {
		// The command line may be that of a process with the number reused.
		return unix.ESRCH
	}
	if err != nil {
		return err
	}
	if d.configless {
		d.uuid, d.launched = uuid, true
	}
	if uuid != d.uuid {
		return errNotEmulator
	}
	return nil
}

// unwatchEmulator forgets the emulator of a status file. mu is held.
func (s *statusSource) unwatchEmulator(file string) {
	if e, ok := s.emulators[file]; ok {
		e.pidfd.Close()
		delete(s.emulators, file)
	}
}

// awaitExit sends e's exit unless its pidfd is closed before.
func (s *statusSource) awaitExit(file string, e emulator) {
	raw, err := e.pidfd.SyscallConn()
	if err != nil {
		return
	}
	if err := raw.Read(readable); err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.emulators[file] != e {
		return
	}
	s.unwatchEmulator(file)
	s.send(func(m *machine) { m.emulatorExited(file, e.pid) })
}

// hasExited reports whether pidfd's process is gone.
func hasExited(pidfd *os.File) bool {
	exited := true
	if raw, err := pidfd.SyscallConn(); err == nil {
		err = raw.Control(func(fd uintptr) { exited = readable(fd) })
		return exited || err != nil
	}
	return exited
}

// readable reports whether fd is, which a pidfd is from its process's exit on.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n > 0 && err == nil
}

// commandLineUUID returns the domain UUID on the command line of an emulator
// libvirt started.
func commandLineUUID(pid int) (string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return "", fmt.Errorf("read command line: %w", err)
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, maxCommandLine))
	if err != nil {
		return "", fmt.Errorf("read command line: %w", err)
	}
	args := strings.Split(string(line), "\x00")
	for i, arg := range args[:len(args)-1] {
		if arg == "-uuid" {
			return strings.ToLower(args[i+1]), nil
		}
	}
	return "", errNotEmulator
}

// readStatusFile reads and parses a status file.
func readStatusFile(path string) (*statusDomain, error) {
	data, err := readRegular(path, maxXMLBytes)
	if err != nil {
		return nil, err
	}
	return parseStatus(data)
}

// readPIDFile returns the process id in a pid file.
func readPIDFile(path string) (int, error) {
	data, err := readRegular(path, maxPIDFile)
	if err != nil {
		return 0, err
	}
	return parsePID(strings.TrimSpace(string(data)))
}

// readRegular reads a regular file of at most limit bytes.
func readRegular(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than the limit of %d bytes", path, limit)
	}
	return data, nil
}

// parseStatus parses a status file: a <domstatus> around the <domain>.
func parseStatus(data []byte) (*statusDomain, error) {
	d := newDecoder(bytes.NewReader(data))
	root, err := d.root("domstatus")
	if err != nil {
		return nil, fmt.Errorf("parse status: %w", err)
	}
	var (
		s    statusDomain
		seen bool
	)
	for _, a := range root.Attr {
		switch a.Name {
		case xml.Name{Local: "pid"}:
			if a.Value == "0" {
				break // not forked yet
			}
			if s.pid, err = parsePID(a.Value); err != nil {
				return nil, fmt.Errorf("parse status: %w", err)
			}
		case xml.Name{Local: "state"}:
			s.launched = a.Value == "running"
		}
	}
	err = d.children(func(start xml.StartElement) error {
		switch start.Name {
		case xml.Name{Local: "vcpus"}:
			return d.children(func(vcpu xml.StartElement) error {
				for _, a := range vcpu.Attr {
					if a.Name == (xml.Name{Local: "pid"}) && a.Value != "0" {
						s.launched = true
					}
				}
				return d.skip()
			})
		case xml.Name{Local: "domain"}:
			if seen {
				return errors.New("a second <domain>")
			}
			seen = true
			dom, err := d.domain(start)
			s.uuid, s.name, s.id = strings.ToLower(dom.uuid), dom.name, dom.id
			s.config, s.configErr = dom.config, dom.configErr
			return err
		default:
			return d.skip()
		}
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse status: %w", err)
	case s.uuid == "" || s.name == "":
		return nil, errors.New("parse status: no name and UUID of a domain")
	}
	return &s, nil
}

// parsePID parses a process id.
func parsePID(text string) (int, error) {
	pid, err := strconv.ParseInt(text, 10, 32)
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s is not a process id", quote(text))
	}
	return int(pid), nil
}
