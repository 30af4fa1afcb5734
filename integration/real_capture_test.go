package integration

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/lab"
)

// wire is what leaves hosts by their cables, frames of guests only. A frame
// belongs to the host on whose device it went out, and has the kernel's time of
// that: all hosts share one clock.
type wire struct {
	quit atomic.Bool
	done sync.WaitGroup

	mu     sync.Mutex
	frames []frame
	errs   []error
}

type frame struct {
	host string
	mac  config.MAC
	at   time.Time
}

// listen begins to listen on hosts' cables.
func listen(l *lab.Lab, hosts ...string) (*wire, error) {
	w := &wire{}
	for _, name := range hosts {
		h := l.Host(name)
		fd := -1
		err := h.Do(func() (err error) {
			fd, err = openCapture(lab.Uplink)
			return err
		})
		if err != nil {
			w.close()
			return nil, fmt.Errorf("listen on %s of host %s: %w", lab.Uplink, name, err)
		}
		w.done.Go(func() { w.read(name, fd) })
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

func (w *wire) read(host string, fd int) {
	defer func() { _ = unix.Close(fd) }()
	data, control := make([]byte, 64), make([]byte, 128)
	for !w.quit.Load() {
		n, cn, _, from, err := unix.Recvmsg(fd, data, control, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if err == nil && (!ok || n < 14 || link.Pkttype != unix.PACKET_OUTGOING) {
			continue // it came in
		}
		f := frame{host: host}
		if err == nil {
			f.mac = config.MAC(data[6:12])
			f.at, err = stampOf(control[:cn])
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

func (w *wire) close() {
	w.quit.Store(true)
	w.done.Wait()
}

// since returns the frames of a guest since t, in the order of their times.
func (w *wire) since(t *testing.T, mac config.MAC, from time.Time) []frame {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.errs {
		t.Error(err)
	}
	var out []frame
	for _, f := range w.frames {
		if f.mac == mac && f.at.After(from) {
			out = append(out, f)
		}
	}
	return out
}

// handedOver checks that no frame of the guest left the old host after the
// first one from the new host since a point in time. It returns when the old
// host's last and the new host's first one left; the former is zero if none did.
func (w *wire) handedOver(t *testing.T, mac config.MAC, from time.Time, old, now string) (last, first time.Time) {
	t.Helper()
	var late int
	for _, f := range w.since(t, mac, from) {
		switch f.host {
		case old:
			if f.at.After(last) {
				last = f.at
			}
		case now:
			if first.IsZero() || f.at.Before(first) {
				first = f.at
			}
		}
	}
	if first.IsZero() {
		t.Errorf("no frame of %s has left host %s", mac, now)
		return last, first
	}
	for _, f := range w.since(t, mac, first) {
		if f.host == old {
			late++
		}
	}
	if late > 0 {
		t.Errorf("%d frames of %s left host %s after host %s had begun to speak for it, the last %v later", late, mac, old, now, last.Sub(first))
	}
	return last, first
}
