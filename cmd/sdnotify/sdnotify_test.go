package sdnotify

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// systemd is a socket such as systemd's.
func systemd(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// heard reads one datagram.
func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("nothing was heard: %v", err)
	}
	return string(b[:n])
}

func environment(of map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := of[name]; return v, ok }
}

func TestAServiceTellsOfItsLife(t *testing.T) {
	t.Parallel()
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@understudy-sdnotify-%d", os.Getpid())} {
		socket := systemd(t, name)
		n, err := New(environment(map[string]string{"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": strconv.Itoa(os.Getpid())}))
		if err != nil {
			t.Fatal(err)
		}
		if n.Interval() != time.Minute {
			t.Errorf("the watchdog's interval is %v, want a minute", n.Interval())
		}
		for _, step := range []struct {
			tell func() error
			want string
		}{
			{n.Ready, `READY=1\n`},
			{func() error { return n.Status("web runs here, protected by beta") }, `STATUS=web runs here, protected by beta\n`},
			{n.Alive, `WATCHDOG=1\n`},
			{n.Reloading, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\n`},
			{func() error { return n.MainPID(4711) }, `MAINPID=4711\n`},
			{n.Stopping, `STOPPING=1\n`},
		} {
			if err := step.tell(); err != nil {
				t.Fatal(err)
			}
			if got := heard(t, socket); !regexp.MustCompile(`\A` + step.want + `\z`).MatchString(got) {
				t.Errorf("heard %q, want %q", got, step.want)
			}
		}
	}
}

func TestAStatusIsOneLine(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "notify")
	socket := systemd(t, name)
	n, err := New(environment(map[string]string{"NOTIFY_SOCKET": name}))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Status("trouble: no\nREADY=1\r\n\x00MAINPID=1"); err != nil {
		t.Fatal(err)
	}
	if got, want := heard(t, socket), "STATUS=trouble: no READY=1 MAINPID=1\n"; got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
	if err := n.Status(strings.Repeat("ä", 4000)); err != nil {
		t.Fatal(err)
	}
	if got := heard(t, socket); len(got) > maxStatus+len("STATUS=\n") || !utf8.ValidString(got) {
		t.Errorf("a long status has %d bytes, valid UTF-8: %v", len(got), utf8.ValidString(got))
	}
}

func TestNobodyWantsToKnow(t *testing.T) {
	t.Parallel()
	n, err := New(environment(nil))
	if n != nil || err != nil {
		t.Fatalf("without a socket: %v, %v", n, err)
	}
	for _, tell := range []func() error{n.Ready, n.Alive, n.Reloading, n.Stopping, func() error { return n.Status("fine") }} {
		if err := tell(); err != nil {
			t.Error(err)
		}
	}
	if n.Interval() != 0 {
		t.Errorf("nobody watches every %v", n.Interval())
	}
}

func TestAForeignWatchdogIsNotOurs(t *testing.T) {
	t.Parallel()
	n, err := New(environment(map[string]string{"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}))
	if err != nil || n.Interval() != 0 {
		t.Errorf("the watchdog of another process: every %v, %v", n.Interval(), err)
	}
}

func TestAnEnvironmentThatMakesNoSense(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ socket, watchdog, want string }{
		{"notify", "", "want the path of a Unix socket"},
		{"/" + strings.Repeat("x", 200), "", "less than 108 bytes, this one 201"},
		{"/run/notify", "soon", "want microseconds"},
		{"/run/notify", "-5", "want microseconds"},
		{"/run/notify", "0", "want microseconds"},
		{"/run/notify", "99999999999999999999", "want microseconds"},
	} {
		_, err := New(environment(map[string]string{"NOTIFY_SOCKET": c.socket, "WATCHDOG_USEC": c.watchdog}))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	n, err := New(environment(map[string]string{"NOTIFY_SOCKET": filepath.Join(t.TempDir(), "gone")}))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "tell systemd") {
		t.Errorf("a socket that is not there: %v", err)
	}
}
