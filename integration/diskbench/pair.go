package main

// Two hosts in this process, whose disk is one file: a guest runs on the one, and
// the other can take it over.
//
//	newPair: network, certificates; on each host a gate and a served disk
//	start: the guest boots on host a ─> protect: primary ── TLS ──> backup
//	unprotect, or lose: host a is gone at once, the backup takes over

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/cmd/daemon"
	"understudy/disk"
	"understudy/disk/store"
	"understudy/disk/vhost"
	"understudy/egress"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/guest"
	"understudy/guest/client"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
	"understudy/integration/onevoter"
	"understudy/lab"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
	"understudy/transport"
	"understudy/transport/pki"
)

const (
	labPrefix   = "usdisk"
	guestName   = "diskbench"
	guestMAC    = "52:54:00:be:ac:02"
	guestMemory = 256 << 20
	sideMemory  = 64 << 20 // room for a machine's RAM beside its main memory
	hostA       = "a"
	hostB       = "b"
	replication = "understudy-replication/1" // the ALPN name of the sessions
	printKey    = epoch.PrintKey(0x1badb002)

	// leaseTime is long: no busy machine must end one.
	leaseTime   = 10 * time.Second
	protectTime = 2 * time.Minute
)

var guestAddress = netip.MustParsePrefix("10.99.0.100/24")

// pair is the two hosts.
type pair struct {
	dir, images string
	lab         *lab.Lab
	log         *slog.Logger
	grants      *onevoter.Log
	a, b        *side
	port        *transport.Port

	control *client.Control
	stop    context.CancelFunc // ends primary and backup
	primary *primary.Primary
	ended   chan error
	standby chan backup.Result
	failed  chan error // of the backup
}

// side is one of the hosts.
type side struct {
	name    string
	cfg     qemu.Config
	driver  *qemu.Driver
	gate    *egress.Gate
	set     *disk.Set
	front   *vhost.Server
	guest   hypervisor.Guest
	drained chan struct{}
}

// pairConfig says what the pair's disk is.
type pairConfig struct {
	file   string // both hosts' disk
	images string // directory of vmlinuz and initrd
	mount  bool   // the disk has a file system for the guest to mount
	// wrap puts a store of the caller's around each host's; nil: none.
	wrap func(disk.Store) disk.Store
	log  *slog.Logger
}

func newPair(c pairConfig) (_ *pair, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a protected guest needs network namespaces and a TAP device: run this as root")
	}
	if _, err := lab.Sweep(labPrefix); err != nil {
		return nil, err
	}
	p := &pair{log: c.log, grants: onevoter.New(hostA, leaseTime)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.dir, err = os.MkdirTemp("", labPrefix); err != nil {
		return nil, err
	}
	if p.images, err = os.MkdirTemp("/dev/shm", labPrefix); err != nil {
		return nil, err
	}
	for _, dir := range []string{p.dir, p.images} {
		if err := os.Chmod(dir, 0o711); err != nil { // QEMU's account passes through
			return nil, err
		}
	}
	if err := pki.Init(p.tls(), []string{hostA, hostB}, 24*time.Hour); err != nil {
		return nil, err
	}
	if p.lab, err = lab.New(lab.Options{Prefix: labPrefix, Hosts: []string{hostA, hostB, "client"}}); err != nil {
		return nil, err
	}
	for name, to := range map[string]**side{hostA: &p.a, hostB: &p.b} {
		if *to, err = p.newSide(c, name); err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
	}
	return p, nil
}

func (p *pair) tls() string { return filepath.Join(p.dir, "tls") }

func (p *pair) newSide(c pairConfig, name string) (_ *side, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	boot := guest.Boot{Address: guestAddress}
	if c.mount {
		boot.Disk = guest.Disk{Device: guest.FirstDisk, Dir: guest.DataDir}
	}
	s := &side{name: name, cfg: qemu.Config{
		Name: guestName, Memory: guestMemory, CPUs: 1, Machine: "q35", Accel: qemu.AccelTCG,
		Kernel: filepath.Join(c.images, "vmlinuz"), Initrd: filepath.Join(c.images, "initrd"), Append: boot.CommandLine(),
		NICs: []qemu.NIC{{MAC: guestMAC}}, Served: []qemu.ServedDisk{{}},
		RunDir: filepath.Join(p.dir, name), ImageDir: filepath.Join(p.images, name),
		Helper: []string{self, helperCommand},
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	log := p.log.With("host", name)
	if s.driver, err = qemu.NewDriver(s.cfg, log); err != nil {
		return nil, err
	}
	if err = s.driver.Prepare(); err != nil {
		return nil, err
	}
	if err = p.openGate(s, log); err != nil {
		return nil, err
	}
	return s, p.serve(s, c, log)
}

// openGate makes the guest's way out: a TAP on the bridge of its host.
func (p *pair) openGate(s *side, log *slog.Logger) error {
	guestSide, hostSide := s.cfg.NICSockets(0)
	frames, err := egress.OpenGuestSocket(egress.SocketConfig{Local: hostSide, Remote: guestSide, UID: -1, GID: -1})
	if err != nil {
		return err
	}
	if err := s.driver.Grant(hostSide); err != nil {
		return errors.Join(err, frames.Close())
	}
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		return errors.Join(err, frames.Close())
	}
	var tap *egress.TAP
	err = p.lab.Host(s.name).Do(func() (err error) {
		tap, err = egress.OpenTAP(egress.TAPConfig{Name: "usdisk0", Bridge: lab.Bridge})
		return err
	})
	if err != nil {
		return errors.Join(err, frames.Close())
	}
	s.gate, err = egress.NewGate(egress.Config{Guest: frames, Network: tap, Clock: clock.Boot{}, MAC: mac, Log: log})
	if err != nil {
		return errors.Join(err, frames.Close(), tap.Close())
	}
	return nil
}

// serve makes the disk as a daemon makes it.
func (p *pair) serve(s *side, c pairConfig, log *slog.Logger) error {
	one, err := store.Open(store.Config{Path: c.file, Shared: true, Host: s.name, Log: log})
	if err != nil {
		return err
	}
	var bytes disk.Store = one
	if c.wrap != nil {
		bytes = c.wrap(one)
	}
	cfg := disk.SetConfig{
		Pages: (guestMemory + sideMemory) / epoch.PageSize, JournalDir: filepath.Join(s.cfg.ImageDir, "writes"),
		Clock: clock.Boot{}, Log: log, Disks: []disk.DiskConfig{{Store: bytes, Serial: guestName}},
	}
	cfg.Index = exclusion.NewIndex(exclusion.Config{Pages: cfg.Pages, Key: printKey})
	if err = os.MkdirAll(cfg.JournalDir, 0o700); err == nil {
		s.set, err = disk.NewSet(cfg)
	}
	if err != nil {
		return errors.Join(err, one.Close())
	}
	path := s.cfg.DiskSocket(0)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if s.front, err = vhost.Listen(vhost.Config{Path: path, Backend: s.set.Disk(0), Log: log}); err != nil {
		return err
	}
	if err := s.driver.Grant(path); err != nil {
		return err
	}
	return s.set.Disk(0).Attach(s.front)
}

// adopt keeps reading a guest's events.
func (s *side) adopt(g hypervisor.Guest) {
	s.guest, s.drained = g, make(chan struct{})
	events, drained := g.Events(), s.drained
	go func() { // ends with the guest
		defer close(drained)
		for range events { //nolint:revive // nobody wants them
		}
	}()
}

// lose takes away what runs on a host.
func (s *side) lose() error {
	var errs []error
	if s.guest != nil {
		errs = append(errs, s.guest.Destroy())
		<-s.drained
		s.guest = nil
	}
	if s.front != nil {
		errs = append(errs, s.front.Close())
		s.front = nil
	}
	if s.set != nil {
		errs = append(errs, s.set.Close())
		s.set = nil
	}
	return errors.Join(errs...)
}

func (s *side) close() error {
	err := s.lose()
	if s.gate != nil {
		err = errors.Join(err, s.gate.Close())
	}
	if s.driver != nil {
		err = errors.Join(err, s.driver.Clean(context.Background()))
	}
	return err
}

// open lets a host's guest use network and disk as they are.
func (s *side) open() error {
	s.gate.Pass()
	until := clock.Boot{}.Now().Add(time.Hour)
	if err := errors.Join(s.gate.Allow(until), s.set.Allow(until)); err != nil {
		return err
	}
	s.set.Pass()
	return nil
}

// start boots the guest on host a, unprotected.
func (p *pair) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	p.a.set.Own(1)
	if err := p.a.open(); err != nil {
		return err
	}
	g, err := p.a.driver.Start(ctx)
	if err != nil {
		return err
	}
	p.a.adopt(g)
	if err := g.Resume(ctx); err != nil {
		return err
	}
	p.control, err = p.connect(ctx)
	return err
}

// connect dials the guest until it answers.
func (p *pair) connect(ctx context.Context) (*client.Control, error) {
	address := netip.AddrPortFrom(guestAddress.Addr(), guest.ControlPort).String()
	for {
		c, err := dialControl(ctx, func(ctx context.Context) (net.Conn, error) { return p.lab.Host("client").Dial(ctx, "tcp", address) })
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("the guest does not answer: %w", err), ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// protect starts primary and backup and waits until the backup is in sync.
// observe, if not nil, is told of every checkpoint.
func (p *pair) protect(ctx context.Context, observe func(primary.Cost)) error {
	running, stop := context.WithCancel(context.Background())
	p.stop, p.ended, p.standby, p.failed = stop, make(chan error, 1), make(chan backup.Result, 1), make(chan error, 1)
	dial, sessions, err := p.sessions(running)
	if err != nil {
		stop()
		return err
	}
	state := p.grants.Begin()
	disks := []protocol.DiskSpec{{Sectors: p.a.set.Disk(0).Info().Sectors, Store: "shared"}}

	bc := backup.DefaultConfig(guestName, hostB, leaseTime, guestMemory+sideMemory)
	bc.Disks, bc.AskAfter = disks, 50*time.Millisecond
	b := backup.New(bc, backup.Deps{
		Driver: p.b.driver, Disks: p.b.set, Log: p.grants, Sessions: sessions, Clock: clock.Boot{}, Slog: p.log.With("host", hostB), State: state,
	})
	go func() { // ends with unprotect, or a takeover
		r, err := b.Run(running)
		p.standby <- r
		p.failed <- err
	}()

	pc := primary.DefaultConfig(guestName, hostA, leaseTime)
	pc.Disks, pc.PrintKey, pc.Addresses = disks, printKey, []netip.Addr{guestAddress.Addr()}
	if p.primary, err = primary.New(pc, primary.Deps{
		Guest: p.a.guest, Gate: p.a.gate, Disks: p.a.set, Log: p.grants, Dial: dial, Clock: clock.Boot{},
		Slog: p.log.With("host", hostA), State: state, Running: true, Observe: observe,
	}); err != nil {
		return err
	}
	one := p.primary
	go func() { // ends with unprotect
		_, err := one.Run(running)
		p.ended <- err
	}()
	limit := time.NewTimer(protectTime)
	defer limit.Stop()
	for one.Status().Mode != primary.ModeProtected {
		select {
		case <-limit.C:
			s := one.Status()
			return fmt.Errorf("not protected after %v: %s, %d pages left, %s", protectTime, s.Mode, s.Remaining, s.LinkError)
		case err := <-p.ended:
			p.ended <- nil
			return errors.Join(errors.New("the primary has ended"), err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// sessions makes the way from the primary to the backup. Its goroutine ends with
// ctx.
func (p *pair) sessions(ctx context.Context) (primary.Dial, <-chan backup.Opened, error) {
	wire := transport.DefaultConfig()
	wire.HeartbeatTimeout = 5 * time.Second // a busy machine is no dead peer
	there, err := transport.LoadIdentity(p.tls(), hostB)
	if err != nil {
		return nil, nil, err
	}
	here, err := transport.LoadIdentity(p.tls(), hostA)
	if err != nil {
		return nil, nil, err
	}
	port, err := transport.Listen(ctx, "127.0.0.1:0", there, []string{hostA, hostB}, p.log)
	if err != nil {
		return nil, nil, err
	}
	p.port = port
	acceptor, err := transport.NewAcceptor(port.Protocol(replication), wire, p.log)
	if err != nil {
		return nil, nil, err
	}
	opened := make(chan backup.Opened)
	go func() {
		defer func() { _ = acceptor.Close() }()
		for {
			s, err := acceptor.Accept(ctx)
			if err != nil {
				return
			}
			hello, err := readHello(ctx, daemon.Session{Session: s})
			if err != nil {
				_ = s.Close()
				continue
			}
			select {
			case opened <- backup.Opened{Session: daemon.Session{Session: s}, Hello: hello}:
			case <-ctx.Done():
				_ = s.Close()
				return
			}
		}
	}()
	address := port.Addr().String()
	return func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
		s, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
			return transport.Dial(ctx, address, hostB, replication, here)
		}, wire, p.log)
		if err != nil {
			return nil, hostB, err
		}
		return daemon.Session{Session: s}, hostB, nil
	}, opened, nil
}

func readHello(ctx context.Context, s protocol.Session) (protocol.Hello, error) {
	var j protocol.Joiner
	for {
		m, err := s.Receive(ctx)
		if err != nil {
			return protocol.Hello{}, err
		}
		if m.Kind != protocol.KindHello {
			m.Release()
			return protocol.Hello{}, fmt.Errorf("message kind %d instead of a hello", m.Kind)
		}
		whole, done, err := j.Add(m.Payload)
		m.Release()
		if err != nil || done {
			if err != nil {
				return protocol.Hello{}, err
			}
			return protocol.ParseHello(whole)
		}
	}
}

// unprotect ends primary and backup. The guest runs on, alone.
func (p *pair) unprotect(ctx context.Context) error {
	if p.stop == nil {
		return nil
	}
	p.stop()
	p.stop = nil
	err := <-p.ended
	<-p.standby
	err = errors.Join(err, <-p.failed, p.port.Close())
	if p.a.guest != nil {
		err = errors.Join(err, p.a.open(), p.a.guest.Resume(ctx))
	}
	return err
}

// takeOver takes host a away while the guest does what it does, and returns once
// the guest runs on host b.
func (p *pair) takeOver(ctx context.Context) error {
	// The guest is dead before its session is: nothing of it gets out later.
	if err := p.a.guest.Destroy(); err != nil {
		return err
	}
	if err := p.a.lose(); err != nil {
		return err
	}
	select {
	case r := <-p.standby:
		if err := <-p.failed; err != nil || r.Outcome != backup.OutcomeTookOver {
			p.standby <- r
			p.failed <- nil
			return fmt.Errorf("the backup did not take over: %v: %w", r.Outcome, err)
		}
		p.b.adopt(r.Guest)
		p.standby <- r
		p.failed <- nil
		return p.b.open()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends everything and leaves nothing behind.
func (p *pair) close() error {
	var errs []error
	if p.control != nil {
		errs = append(errs, p.control.Close())
	}
	if p.stop != nil {
		errs = append(errs, p.unprotect(context.Background()))
	}
	for _, s := range []*side{p.a, p.b} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if p.lab != nil {
		errs = append(errs, p.lab.Close())
	}
	for _, dir := range []string{p.dir, p.images} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}
