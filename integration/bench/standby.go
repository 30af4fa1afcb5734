package main

// The backup's host: a process of its own, so that its garbage collector and
// its goroutines are not those of the primary. Its life:
//
//	read the task from stdin → listen → print the port → stand by
//	→ stdin ends (the benchmark is over, or dead) → end every QEMU of both hosts
//	→ if it is dead: remove its place
//
// The last steps make a benchmark that was killed leave nothing behind.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/cmd/daemon"
	"understudy/egress"
	"understudy/host"
	"understudy/hypervisor/qemu"
	"understudy/integration/onevoter"
	"understudy/lab"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
	"understudy/transport"
)

// replication is the ALPN name of the sessions.
const replication = "understudy-replication/1"

// leaseTime is long: what a lease costs is not measured here, and a busy
// machine must not end one.
const leaseTime = 10 * time.Second

// task is what the backup's process is told.
type task struct {
	Here, There qemu.Config // the guest on the backup's host, on the primary's
	Place       place
	Disk        string // that both hosts reach; "": the guest has none
	Verbose     bool
}

// standbyProcess is the backup's host as its parent sees it.
type standbyProcess struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	address string
}

func startStandby(t task) (_ *standbyProcess, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &standbyProcess{cmd: exec.Command(self, standbyCommand)}
	s.cmd.Stderr = os.Stderr
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the backup's process: %w", err)
	}
	if err = json.NewEncoder(s.stdin).Encode(t); err == nil {
		s.address, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the backup's process does not listen: %w", err), s.close())
	}
	s.address = s.address[:len(s.address)-1]
	return s, nil
}

// close ends the process and waits until it has cleaned up.
func (s *standbyProcess) close() error {
	err := s.stdin.Close()
	if e := s.cmd.Wait(); e != nil {
		err = errors.Join(err, fmt.Errorf("the backup's process: %w", e))
	}
	return err
}

// standbyMain is the whole process.
func standbyMain() error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the task: %w", err)
	}
	var t task
	if err := json.Unmarshal(line, &t); err != nil {
		return fmt.Errorf("read the task: %w", err)
	}
	log := newLog(t.Verbose)
	parent := os.Getppid()
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	err = standBy(ctx, t, log)
	for _, c := range []qemu.Config{t.Here, t.There} {
		if d, e := qemu.NewDriver(c, log); e == nil {
			err = errors.Join(err, d.Clean(context.Background()))
		}
	}
	if os.Getppid() != parent {
		_, e := lab.Sweep(labPrefix)
		err = errors.Join(err, e, t.Place.close())
	}
	return err
}

func standBy(ctx context.Context, t task, log *slog.Logger) error {
	id, err := transport.LoadIdentity(t.Place.tls(), hostB)
	if err != nil {
		return err
	}
	port, err := transport.Listen(ctx, "127.0.0.1:0", id, []string{hostA, hostB}, log)
	if err != nil {
		return err
	}
	defer func() { _ = port.Close() }()
	acceptor, err := transport.NewAcceptor(port.Protocol(replication), wireConfig(), log)
	if err != nil {
		return err
	}
	defer func() { _ = acceptor.Close() }()
	driver, err := qemu.NewDriver(t.Here, log)
	if err != nil {
		return err
	}
	// This host never runs the guest; its way out leads nowhere.
	guestEnd, _ := egress.NewPipe(1)
	networkEnd, _ := egress.NewPipe(1)
	gate, err := egress.NewGate(egress.Config{Guest: guestEnd, Network: networkEnd, Clock: clock.Boot{}, HeldBytes: egress.MinHeldBytes, Log: log})
	if err != nil {
		return err
	}
	var disks host.Disks
	var specs []protocol.DiskSpec
	if t.Disk != "" {
		if err := driver.Prepare(); err != nil {
			return errors.Join(err, gate.Close())
		}
		s, err := serve(t.Here, driver, &copied{path: t.Disk}, hostB, true, log)
		if err != nil {
			return errors.Join(err, gate.Close())
		}
		disks, specs = s, s.spec
	}
	h, err := host.New(host.Config{
		Self: hostB, Log: onevoter.New(hostA, leaseTime), Clock: clock.Boot{}, Slog: log,
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			s, err := acceptor.Accept(ctx)
			if err != nil {
				return nil, "", err
			}
			return daemon.Session{Session: s}, ownership.HostID(s.Peer()), nil
		},
		Guests: []host.Guest{{
			Name: guestName, Home: hostA, Peer: hostA, Driver: driver, Gate: gate, Disks: disks,
			Primary: func(l time.Duration) primary.Config { return primary.DefaultConfig(guestName, hostB, l) },
			Backup: func(l time.Duration) backup.Config {
				c := backup.DefaultConfig(guestName, hostB, l, t.Here.Memory+sideBytes)
				c.Disks = specs
				return c
			},
			Dial: func(context.Context) (protocol.Session, error) {
				return nil, errors.New("this host runs no guest")
			},
		}},
	})
	if err != nil {
		return errors.Join(err, gate.Close()) // the process ends, and the disk with it
	}
	fmt.Println(port.Addr())
	return h.Run(ctx)
}

// dialer opens sessions to the backup's host.
func dialer(address, tls string, log *slog.Logger) (primary.Dial, error) {
	id, err := transport.LoadIdentity(tls, hostA)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
		s, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
			return transport.Dial(ctx, address, hostB, replication, id)
		}, wireConfig(), log)
		if err != nil {
			return nil, hostB, err
		}
		return daemon.Session{Session: s}, hostB, nil
	}, nil
}

func wireConfig() transport.Config {
	c := transport.DefaultConfig()
	c.HeartbeatTimeout = 5 * time.Second // a busy machine is no dead peer
	return c
}
