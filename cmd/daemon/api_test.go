package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/config"
	"understudy/status"
	"understudy/transport/pki"
)

// TestTheEndpointOfARealDaemon starts one of three, alone: its endpoint shows
// the host's own certificate, says that it lives and why it is not ready, knows
// an operator by the cluster's certificates, and tells what the daemon recorded.
func TestTheEndpointOfARealDaemon(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "us") // short: it holds a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	keys := filepath.Join(dir, "tls")
	if err := pki.Init(keys, []string{"a", "b", "w"}, 0); err != nil {
		t.Fatal(err)
	}
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		return l.Addr().String()
	}
	api := free()
	c, err := config.Parse([]byte(`
cluster = "lab"
state_dir = "` + dir + `/state"
run_dir = "` + dir + `/run"
tls_dir = "` + keys + `"
[[host]]
name = "a"
address = "` + free() + `"
[[host]]
name = "b"
address = "` + free() + `"
[[host]]
name = "w"
address = "` + free() + `"
witness = true
[host.api]
listen = "` + api + `"
operators = ["a"]
anonymous = "health"
`))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Config: c, Host: "w", Slog: slog.New(slog.NewTextHandler(t.Output(), nil)), Ready: func() { close(ready) }})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}

	ca, err := pki.ReadCertificate(pki.AuthorityFile(keys))
	if err != nil {
		t.Fatal(err)
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), ServerName: pki.DNSName("w")}
	trust.RootCAs.AddCert(ca)
	anybody := &http.Client{Transport: &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			resp, err := anybody.Get("https://" + api + path)
			if err != nil {
				if time.Now().After(end) {
					t.Fatal(err)
				}
				continue // it comes up beside the rest
			}
			body := make([]byte, 4096)
			n, _ := resp.Body.Read(body)
			_ = resp.Body.Close()
			return resp.StatusCode, string(body[:n])
		}
	}
	if code, body := get("/livez"); code != 200 || body != "ok\n" {
		t.Errorf("/livez: %d %q", code, body)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "no leader of the ownership log is known") {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if code, _ := get("/primary"); code != 503 {
		t.Errorf("/primary of a witness: %d", code)
	}
	if code, body := get("/api/v1/status"); code != 401 {
		t.Errorf("anybody's status: %d %q", code, body)
	}

	operator := trust.Clone()
	pair, err := tls.LoadX509KeyPair(pki.CertificateFile(keys, "a"), pki.KeyFile(keys, "a"))
	if err != nil {
		t.Fatal(err)
	}
	operator.Certificates = []tls.Certificate{pair}
	client, err := status.NewRemoteClient("https://"+api, operator, "")
	if err != nil {
		t.Fatal(err)
	}
	var cluster status.Cluster
	if err := client.Get(t.Context(), "/api/v1/cluster", &cluster); err != nil {
		t.Fatal(err)
	}
	if cluster.Host != "w" || cluster.Leader != "" || cluster.Contact != nil || len(cluster.Voters) != 3 || cluster.Voters[0].Heard != nil || cluster.Voters[2].Heard == nil {
		t.Errorf("a cluster of which nobody else is there: %+v", cluster)
	}
	var list struct {
		Events []struct{ Kind, Host, Text string }
		Last   uint64
	}
	if err := client.Get(t.Context(), "/api/v1/events?kind=host-up", &list); err != nil || len(list.Events) != 1 || list.Events[0].Host != "w" {
		out, _ := json.Marshal(list)
		t.Errorf("events: %s, %v", out, err)
	}
}
