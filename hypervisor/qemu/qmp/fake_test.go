package qmp

import (
	"bufio"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeQEMU plays a script on the other end of a client's connection: a line
// "> x" is what the client must say next, "< x" what QEMU then says.
type fakeQEMU struct {
	t     *testing.T
	conn  *net.UnixConn
	in    *bufio.Reader
	ended chan struct{}
}

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

const opening = "< " + hello + `
> {"execute":"qmp_capabilities","id":0}
< {"return": {}, "id": 0}
`

// pair makes a connection and gives the client's end and a fake at the other.
func pair(t *testing.T) (*net.UnixConn, *fakeQEMU) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conn, err := net.FileConn(f)
		must(t, err)
		must(t, f.Close())
		ends[i] = conn.(*net.UnixConn)
	}
	fake := &fakeQEMU{t: t, conn: ends[1], in: bufio.NewReader(ends[1]), ended: make(chan struct{})}
	t.Cleanup(func() { _ = fake.conn.Close() })
	return ends[0], fake
}

// play runs a script in a goroutine that ends with it, or with the connection.
func (f *fakeQEMU) play(script string) {
	go func() {
		defer close(f.ended)
		f.perform(script)
	}()
}

func (f *fakeQEMU) perform(script string) {
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "> "):
			got, err := f.in.ReadString('\n')
			if got = strings.TrimSpace(got); err != nil || got != line[2:] {
				f.t.Errorf("client said %q (%v), the script has %q", got, err, line[2:])
				_ = f.conn.Close()
				return
			}
		case strings.HasPrefix(line, "< "):
			if _, err := f.conn.Write([]byte(line[2:] + "\r\n")); err != nil {
				return // the client has hung up, as some stories want
			}
		case line != "":
			f.t.Errorf("script line %q", line)
		}
	}
}

// talk starts a client against a script that begins after the opening.
func talk(t *testing.T, script string) (*Client, *fakeQEMU) {
	t.Helper()
	conn, fake := pair(t)
	fake.play(opening + script)
	c, err := New(t.Context(), conn)
	must(t, err)
	t.Cleanup(func() {
		_ = c.Close()
		<-fake.ended
	})
	return c, fake
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
