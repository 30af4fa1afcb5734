package status

// A long operation and its stream: what the host says arrives, in order, and an
// answer that makes no sense is an error and nothing else.

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/host"
	"understudy/ownership"
)

func TestAnOperationOnAFileTellsHowFarItIs(t *testing.T) {
	f := newFake()
	f.state = ownership.Guest{Generation: 4, Owner: "alpha"}
	path := filepath.Join(shortDir(t), "s")
	serve(t, f, path)
	c := NewClient(path)

	var seen []uint64
	var saved host.SaveResult
	err := c.Checkpoint(t.Context(), "a/b", "save", host.SaveRequest{File: "/f", Pin: true}, &saved, func(stage string, done, total uint64) {
		if stage != host.StageMemory || total != 999 {
			t.Errorf("stage %q of %d", stage, total)
		}
		seen = append(seen, done)
	})
	if err != nil || saved.Path != "/f" || saved.Guest != "a/b" || saved.Rounds != 3 {
		t.Errorf("save: %+v, %v", saved, err)
	}
	if len(seen) < 2 || len(seen) > 20 || seen[0] != 0 || seen[len(seen)-1] != 999 {
		t.Errorf("progress %v: want few, the first and the last", seen)
	}
	if asked := <-f.asked; !strings.Contains(asked, "Pin:true") || !strings.HasSuffix(asked, "a/b") {
		t.Errorf("the host was asked to %s", asked)
	}

	var back host.RestoreResult
	if err := c.Checkpoint(t.Context(), "web", "restore", host.RestoreRequest{File: "/f", Eager: true}, &back, nil); err != nil || back.Lazy || back.Log != f.state {
		t.Errorf("restore: %+v, %v", back, err)
	}
	var found host.VerifyFileResult
	if err := c.Checkpoint(t.Context(), "web", "verify", FileRequest{File: "/f"}, &found, nil); err != nil || found.Well() {
		t.Errorf("verify: %+v, %v", found, err)
	}
	var gone FileRemoved
	if err := c.Checkpoint(t.Context(), "web", "remove", FileRequest{File: "/f", Keep: true}, &gone, nil); err != nil || gone != (FileRemoved{"/f", true}) {
		t.Errorf("remove: %+v, %v", gone, err)
	}
}

// TestAFailureComesInTheHostsOwnWordsAtAnyTime: before the stream and in it.
func TestAFailureComesInTheHostsOwnWordsAtAnyTime(t *testing.T) {
	f := newFake()
	f.err = errors.New("disk 0 was written since")
	path := filepath.Join(shortDir(t), "s")
	serve(t, f, path)
	for _, operation := range []string{"save", "restore", "verify", "remove"} {
		var r struct{}
		err := NewClient(path).Checkpoint(t.Context(), "web", operation, FileRequest{File: "/f"}, &r, nil)
		if err == nil || err.Error() != f.err.Error() {
			t.Errorf("%s: %v, want %v", operation, err, f.err)
		}
		<-f.asked
	}
	for body, want := range map[string]int{`{}`: 200, `{"file":"/f"}`: 200, ``: 400, `{`: 400, `[]`: 400, `{"file":7}`: 400,
		`{"fiel":"/f"}`: 400, `{"file":"/f"} {}`: 400, strings.Repeat(" ", MaxBody+1) + "{}": 400} {
		resp := request(t, path, http.MethodPost, "/api/v1/guests/web/checkpoint/save", strings.NewReader(body))
		if resp.StatusCode != want {
			t.Errorf("body %.40q: %s, want %d", body, resp.Status, want)
		}
		if want == 200 {
			<-f.asked
		}
	}
	if len(f.asked) > 0 {
		t.Errorf("the host was asked to %s", <-f.asked)
	}
}

func TestALongOperationEndsWithItsClient(t *testing.T) {
	f := newFake()
	f.wait = true
	path := filepath.Join(shortDir(t), "s")
	stop := serve(t, f, path)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		var r struct{}
		ended <- NewClient(path).Checkpoint(ctx, "web", "save", host.SaveRequest{File: "/f"}, &r, nil)
	}()
	<-f.asked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoDaemon) {
		t.Errorf("the client says %v", err)
	}
	if err := stop(); err != nil { // waits for the operation
		t.Error(err)
	}
}

// TestAStreamThatMakesNoSenseIsAnError, whatever comes before.
func TestAStreamThatMakesNoSenseIsAnError(t *testing.T) {
	const some = `{"stage":"memory","done":1,"total":2}` + "\n"
	for about, c := range map[string]struct{ body, want string }{
		"nothing":            {"", "it broke off"},
		"no end":             {some, "`understudy status` says what became of the guest"},
		"half a line":        {some + `{"result":`, "no line of progress"},
		"no JSON":            {"hello\n", "no line of progress"},
		"an empty line":      {"\n", "no line of progress"},
		"a list":             {"[]\n", "no line of progress"},
		"more than all":      {`{"stage":"memory","done":3,"total":2}` + "\n", "makes no sense"},
		"less than nothing":  {`{"stage":"memory","done":-3,"total":2}` + "\n", "no line of progress"},
		"no stage":           {`{"done":1,"total":2}` + "\n", "makes no sense"},
		"an empty object":    {"{}\n", "makes no sense"},
		"another result":     {`{"result":{}}` + "\n" + `{"result":{}}` + "\n", "something follows"},
		"a result of no use": {`{"result":[1]}` + "\n", "its result"},
		"an error of no use": {`{"error":{}}` + "\n", "no line of progress"},
		"a line without end": {strings.Repeat("x", MaxBody+10), "token too long"},
		"cut in a long line": {some + strings.Repeat(" ", 100_000), "no line of progress"},
		"both":               {`{"error":"no","result":{}}` + "\n", "no"},
	} {
		t.Run(strings.ReplaceAll(about, " ", "-"), func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write([]byte(c.body)) // the client may have seen enough
			})}
			ended := make(chan error, 1)
			go func() { ended <- s.Serve(l) }()
			defer func() { _, _ = s.Close(), <-ended }()
			var r struct{}
			err = NewClient(path).Checkpoint(t.Context(), "web", "save", struct{}{}, &r, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNoDaemon) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func FuzzFollow(f *testing.F) {
	f.Add(`{"stage":"memory","done":1,"total":2}` + "\n" + `{"result":{"file":"/f"}}` + "\n")
	f.Add(`{"error":"no"}`)
	f.Add("{}")
	f.Fuzz(func(t *testing.T, body string) {
		var r FileRemoved
		err := follow(strings.NewReader(body), &r, func(stage string, done, total uint64) {
			if stage == "" || done > total {
				t.Errorf("told of %q %d of %d", stage, done, total)
			}
		})
		if err == nil && len(body) < len(`{"result":{}}`) {
			t.Errorf("%q is taken for a result", body)
		}
	})
}
