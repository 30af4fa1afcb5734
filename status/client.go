package status

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"understudy/ownership"
)

// Client talks to a daemon: that of this host, or one elsewhere.
type Client struct {
	socket  string // or the endpoint's URL, or the host: what errors name
	base    string
	through string // the path to another host, see At
	token   string
	http    *http.Client
	silent  error // what it means that nobody answers
}

// NewClient returns a client of the daemon whose socket is at path.
func NewClient(path string) *Client {
	return &Client{socket: path, base: "http://understudy", silent: ErrNoDaemon, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// NewPeerClient returns a client of another host's daemon. dial connects to
// that host's endpoint for hosts (Server.ServePeers), each time anew.
func NewPeerClient(host ownership.HostID, dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{socket: "host " + string(host), base: "http://understudy", silent: ErrNoPeer, http: &http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// At returns a client of another host's daemon, asked through this one's.
func (c *Client) At(host ownership.HostID) *Client {
	at := *c
	at.through = strings.TrimSuffix(hostsPath, "/") + "/" + url.PathEscape(string(host))
	return &at
}

// NewRemoteClient returns a client of the endpoint at url, like
// "https://192.0.2.1:7443". The settings for TLS trust the authority of its
// certificate and name the host that must be in it, and hold the client's own
// certificate, if it shows one. token is a bearer token; "": none. A redirection
// is an error: a token goes nowhere else.
func NewRemoteClient(endpoint string, settings *tls.Config, token string) (*Client, error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the endpoint's URL: %w", err)
	case u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("%.200q is not the URL of an endpoint: want https://HOST:PORT", u.Redacted())
	case token != "" && (len(token) < minSecret || len(token) > maxSecret || strings.ContainsFunc(token, notToken68)):
		return nil, fmt.Errorf("the token is not one: %d to %d letters, digits and -._~+/=", minSecret, maxSecret)
	}
	base := "https://" + u.Host
	return &Client{socket: base, base: base, token: token, silent: ErrNoEndpoint, http: &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:        settings.Clone(),
			TLSHandshakeTimeout:    5 * time.Second,
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Get decodes the answer to GET path into result: any route that answers JSON.
func (c *Client) Get(ctx context.Context, path string, result any) error {
	return c.call(ctx, http.MethodGet, path, nil, result)
}

// Post asks for POST path, with request as the body, in JSON; nil: none.
func (c *Client) Post(ctx context.Context, path string, request, result any) error {
	return c.call(ctx, http.MethodPost, path, request, result)
}

// Delete asks for DELETE path.
func (c *Client) Delete(ctx context.Context, path string, result any) error {
	return c.call(ctx, http.MethodDelete, path, nil, result)
}

// Raw returns the body of the answer to GET path as it is, at most limit bytes
// of it; more is an error.
func (c *Client) Raw(ctx context.Context, path string, limit int64) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return nil, c.refusal(resp)
	}
	return c.body(resp, limit)
}

// Status returns the daemon's report.
func (c *Client) Status(ctx context.Context) (Report, error) {
	var r Report
	return r, c.call(ctx, http.MethodGet, "/api/v1/status", nil, &r)
}

// Operate asks for an operation on a guest: switchover, stop, start, verify.
// The answer is decoded into result.
func (c *Client) Operate(ctx context.Context, guest, operation string, result any) error {
	return c.call(ctx, http.MethodPost, "/api/v1/guests/"+url.PathEscape(guest)+"/"+operation, nil, result)
}

// Upgrade has another daemon take this one's place; see Upgrades.
func (c *Client) Upgrade(ctx context.Context, binary string) (Upgrade, error) {
	var u Upgrade
	return u, c.call(ctx, http.MethodPost, "/api/v1/upgrade", UpgradeRequest{Binary: binary}, &u)
}

// ErrNoDaemon marks a daemon that does not answer.
var ErrNoDaemon = errors.New("no daemon answers: is understudyd running, and are you root?")

// ErrNoPeer marks another host that does not answer.
var ErrNoPeer = errors.New("the host does not answer: is it up, is its understudyd running, and is there a way to it?")

// ErrNoEndpoint marks an endpoint on the network that does not answer, or that
// is not to be trusted.
var ErrNoEndpoint = errors.New("the endpoint does not answer as it should: is it on in its [api], and is this its certificate?")

// Refused is an answer that is not 2xx, in the daemon's words.
type Refused struct {
	Status int // of HTTP
	Why    string
}

func (r *Refused) Error() string { return r.Why }

// Unwrap: a daemon that could not reach the host it was to ask.
func (r *Refused) Unwrap() error {
	if r.Status == http.StatusBadGateway || r.Status == http.StatusGatewayTimeout {
		return errSilentPeer
	}
	return nil
}

// errSilentPeer is ErrNoPeer to errors.Is, where its words are said already.
var errSilentPeer = silentPeer{}

type silentPeer struct{}

func (silentPeer) Error() string        { return ErrNoPeer.Error() }
func (silentPeer) Is(target error) bool { return target == ErrNoPeer } //nolint:errorlint // this is Is

func (c *Client) call(ctx context.Context, method, path string, request, result any) error {
	var body io.Reader
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return c.refusal(resp)
	}
	text, err := c.body(resp, MaxBody)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, result); err != nil {
		return fmt.Errorf("%s: the answer to %s: %w", c.socket, path, err)
	}
	return nil
}

// send asks, and returns an answer whose body the caller closes.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	return c.sendWith(ctx, method, path, body, nil)
}

// ask is send with a body that is at hand, and headers.
func (c *Client) ask(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	if len(body) == 0 {
		return c.sendWith(ctx, method, path, nil, header)
	}
	return c.sendWith(ctx, method, path, bytes.NewReader(body), header)
}

func (c *Client) sendWith(ctx context.Context, method, path string, body io.Reader, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+c.through+path, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fmt.Errorf("%s: %w", c.socket, ctx.Err()) // given up, which says nothing of the daemon
	case err != nil && c.base == c.socket:
		return nil, fmt.Errorf("%w: %w", c.silent, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", c.socket, c.silent, err)
	}
	return resp, nil
}

// body reads an answer that is one value, of at most limit bytes.
func (c *Client) body(resp *http.Response, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: read the answer: %w", c.socket, err)
	case int64(len(body)) > limit:
		return nil, fmt.Errorf("%s: the answer to %s has more than %d bytes", c.socket, resp.Request.URL.Path, limit)
	}
	return body, nil
}

// refusal is the error of an answer that is not 2xx.
func (c *Client) refusal(resp *http.Response) error {
	body, err := c.body(resp, MaxBody)
	if err != nil {
		return err
	}
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		e.Error = resp.Status
	}
	return &Refused{Status: resp.StatusCode, Why: e.Error}
}
