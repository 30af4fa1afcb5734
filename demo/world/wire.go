package world

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/lab"
)

// Wire is what leaves hosts by their cables, frames of guests only. A frame
// belongs to the host on whose device it went out, or on whose cable's other end it
// came in, and has the kernel's time of that: all hosts share one clock.
type Wire struct {
	quit atomic.Bool
	done sync.WaitGroup

	mu     sync.Mutex
	frames []Frame
	errs   []error
}

// Frame is one frame of a guest.
type Frame struct {
	Host string
	MAC  config.MAC
	At   time.Time
	Type uint16 // unix.ETH_P_IP, …
}

// Listen begins to listen on hosts' cables.
func Listen(l *lab.Lab, hosts ...string) (*Wire, error) {
	w := &Wire{}
	for _, name := range hosts {
		h := l.Host(name)
		fd := -1
		err := h.Do(func() (err error) {
			fd, err = openCapture(lab.Uplink)
			return err
		})
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("listen on %s of host %s: %w", lab.Uplink, name, err)
		}
		w.done.Go(func() { w.read(name, fd, true) })
	}
	return w, nil
}

// ListenEnds begins to listen on the other ends of hosts' cables, which are devices
// of this process' own network namespace, by host.
func ListenEnds(devices map[string]string) (*Wire, error) {
	w := &Wire{}
	for name, device := range devices {
		fd, err := openCapture(device)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("listen on %s, where host %s's cable ends: %w", device, name, err)
		}
		w.done.Go(func() { w.read(name, fd, false) })
	}
	return w, nil
}

// openCapture opens a packet socket (packet(7)) for frames whose source address
// begins like a guest's.
func openCapture(device string) (int, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	const want = 0x52540077 // how those of all guests of package world begin
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 6}, // the source address
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: want, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 64},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	for _, set := range []func() error{
		func() error { return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) },
		func() error {
			return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
		},
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8, Ifindex: link.Index})
		},
	} {
		if err := set(); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// read keeps the frames that go out by a device, or come in.
func (w *Wire) read(host string, fd int, out bool) {
	defer func() { _ = unix.Close(fd) }()
	data, control := make([]byte, 64), make([]byte, 128)
	for !w.quit.Load() {
		n, cn, _, from, err := unix.Recvmsg(fd, data, control, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if err == nil && (!ok || n < 14 || link.Pkttype == unix.PACKET_OUTGOING != out) {
			continue // it goes the other way
		}
		f := Frame{Host: host}
		if err == nil {
			f.MAC, f.Type = config.MAC(data[6:12]), binary.BigEndian.Uint16(data[12:])
			f.At, err = stampOf(control[:cn])
		}
		w.mu.Lock()
		if err != nil {
			w.errs = append(w.errs, fmt.Errorf("listening on host %s: %w", host, err))
		} else {
			w.frames = append(w.frames, f)
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// stampOf finds the kernel's time of a frame (SO_TIMESTAMPNS).
func stampOf(control []byte) (time.Time, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(ts.Unix()), nil
		}
	}
	return time.Time{}, fmt.Errorf("no time stamp in %d control messages", len(messages))
}

// Close ends it.
func (w *Wire) Close() {
	w.quit.Store(true)
	w.done.Wait()
}

// Since returns the frames of a guest since a point in time, in the order in
// which they were heard on each host.
func (w *Wire) Since(mac config.MAC, from time.Time) ([]Frame, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Frame
	for _, f := range w.frames {
		if f.MAC == mac && f.At.After(from) {
			out = append(out, f)
		}
	}
	return out, errors.Join(w.errs...)
}

// Forget drops what was heard so far.
func (w *Wire) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = w.frames[:0]
}

// ForgetBefore drops what was heard up to a point in time.
func (w *Wire) ForgetBefore(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = slices.DeleteFunc(w.frames, func(f Frame) bool { return !f.At.After(t) })
}
