// SPDX-License-Identifier: Apache-2.0

package hooks

// machine decides what is reported. It joins what the status directory and
// libvirt say of each domain into one State and emits the differences. It does
// no I/O and is not safe for concurrent use: the sources' observations are fed
// to it one at a time.
//
// The status file wins for a running domain: libvirt rewrites it before it
// sends the event for the same change, it names the process, and it can be read
// while libvirtd is down. The listing knows the domains that do not run.
type machine struct {
	emit func(Event)

	domains map[string]*domain // by UUID
	files   map[string]string  // UUID by status file

	// online and offline say whether Synced or Disconnected was emitted last;
	// both are false before either was.
	online, offline bool
}

// domain is one domain the machine knows.
type domain struct {
	status *statusDomain // nil without a status file
	listed *listedDomain // nil if libvirt does not know it
	resets uint64

	// ended is what the status file said last, once the emulator exited or the
	// file went, until libvirt says so too. Meanwhile libvirt's word that the
	// domain runs, and the running copy of its XML, are out of date.
	ended *statusDomain

	sent     State
	reported bool // sent was emitted
}

// statusDomain is what the status directory says of one domain.
type statusDomain struct {
	uuid string
	name string
	id   int

	pid      int // 0 before libvirt has forked the emulator
	launched bool
	exited   bool // the emulator is gone, libvirt has not removed the file yet

	config    Config
	configErr error
	// configless says that the file could not be read and the rest comes from
	// elsewhere; configErr is why.
	configless bool
}

// listedDomain is what libvirt says of one domain.
type listedDomain struct {
	uuid   string
	name   string
	id     int
	active bool

	config    Config
	configErr error
}

func newMachine(emit func(Event)) *machine {
	return &machine{
		emit:    emit,
		domains: make(map[string]*domain),
		files:   make(map[string]string),
	}
}

// statusScan takes the whole status directory: every file and no other.
func (m *machine) statusScan(scan map[string]*statusDomain) {
	for file := range m.files {
		if scan[file] == nil {
			m.statusFile(file, nil)
		}
	}
	for file, s := range scan {
		m.statusFile(file, s)
	}
}

// statusFile takes the contents of one status file; nil means that there is no
// such file any more, or nothing to be learned from it.
func (m *machine) statusFile(file string, s *statusDomain) {
	if old, ok := m.files[file]; ok && (s == nil || s.uuid != old) {
		delete(m.files, file)
		d := m.domains[old]
		d.ended, d.status = d.status, nil
		d.agree()
		m.settle(old)
	}
	if s == nil {
		return
	}
	m.files[file] = s.uuid
	d := m.domain(s.uuid)
	d.status, d.ended = s, nil
	if s.exited {
		d.ended = s
	}
	m.settle(s.uuid)
}

// emulatorExited takes the exit of the process a status file named.
func (m *machine) emulatorExited(file string, pid int) {
	uuid, ok := m.files[file]
	if !ok {
		return
	}
	d := m.domains[uuid]
	if d.status.pid != pid {
		return
	}
	s := *d.status
	s.exited = true
	d.status, d.ended = &s, &s
	m.settle(uuid)
}

// list takes libvirt's complete listing, the first of a connection or a later
// one.
func (m *machine) list(domains []listedDomain) {
	listed := make(map[string]bool, len(domains))
	for i := range domains {
		listed[domains[i].uuid] = true
		m.lookup(domains[i].uuid, &domains[i])
	}
	for uuid := range m.domains {
		if !listed[uuid] {
			m.lookup(uuid, nil)
		}
	}
	if !m.online {
		m.online, m.offline = true, false
		m.emit(Event{Kind: Synced})
	}
}

// lookup takes what libvirt says of one domain; nil means that it knows no such
// domain.
func (m *machine) lookup(uuid string, l *listedDomain) {
	if l == nil && m.domains[uuid] == nil {
		return
	}
	d := m.domain(uuid)
	d.listed = l
	d.agree()
	m.settle(uuid)
}

// reset takes a guest reset.
func (m *machine) reset(uuid string) {
	if d := m.domains[uuid]; d != nil {
		d.resets++
		m.settle(uuid)
	}
}

// disconnected takes the loss of libvirt, or a failure to reach it.
func (m *machine) disconnected(err error) {
	if m.offline {
		return
	}
	m.online, m.offline = false, true
	m.emit(Event{Kind: Disconnected, Err: err})
}

func (m *machine) domain(uuid string) *domain {
	d := m.domains[uuid]
	if d == nil {
		d = new(domain)
		m.domains[uuid] = d
	}
	return d
}

// settle reports the domain if its state differs from the one reported last.
func (m *machine) settle(uuid string) {
	d := m.domains[uuid]
	if d.status == nil && d.listed == nil {
		delete(m.domains, uuid)
		if d.reported {
			gone := d.sent
			gone.ID, gone.PID, gone.Active, gone.Launched = 0, 0, false, false
			m.emit(Event{Kind: DomainGone, State: gone})
		}
		return
	}
	state := d.state(uuid)
	if d.reported && state.Equal(d.sent) {
		return
	}
	d.sent, d.reported = state, true
	m.emit(Event{Kind: DomainChanged, State: state})
}

// agree ends the time in which libvirt's word is out of date, once it agrees
// that the domain does not run.
func (d *domain) agree() {
	if d.status == nil && d.listed != nil && !d.listed.active {
		d.ended = nil
	}
}

// state joins what is known of the domain.
func (d *domain) state(uuid string) State {
	state := State{UUID: uuid, Resets: d.resets}
	if s := d.status; s != nil && !s.exited {
		state.Name, state.ID = s.name, s.id
		state.Active, state.PID, state.Launched = true, s.pid, s.launched
		state.Config, state.ConfigErr = s.config, s.configErr
		if l := d.listed; s.configless && l != nil && l.active {
			state.ID, state.Config, state.ConfigErr = l.id, l.config, l.configErr
		}
		return state
	}
	if l := d.listed; l != nil && (d.ended == nil || !l.active) {
		state.Name, state.ID, state.Active = l.name, l.id, l.active
		state.Config, state.ConfigErr = l.config, l.configErr
		return state
	}
	state.Name, state.Config, state.ConfigErr = d.ended.name, d.ended.config, d.ended.configErr
	return state
}
