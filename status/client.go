package status

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client talks to a daemon: that of this host, or one elsewhere.
type Client struct {
	socket string // or the endpoint's URL: what errors name
	base   string
	token  string
	http   *http.Client
}

// NewClient returns a client of the daemon whose socket is at path.
func NewClient(path string) *Client {
	return &Client{socket: path, base: "http://understudy", http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
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
	return &Client{socket: base, base: base, token: token, http: &http.Client{
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
	return c.call(ctx, http.MethodGet, path, result)
}

// Status returns the daemon's report.
func (c *Client) Status(ctx context.Context) (Report, error) {
	var r Report
	return r, c.call(ctx, http.MethodGet, "/api/v1/status", &r)
}

// Operate asks for an operation on a guest: switchover, stop, start, verify.
// The answer is decoded into result.
func (c *Client) Operate(ctx context.Context, guest, operation string, result any) error {
	return c.call(ctx, http.MethodPost, "/api/v1/guests/"+url.PathEscape(guest)+"/"+operation, result)
}

// ErrNoDaemon marks a daemon that does not answer.
var ErrNoDaemon = errors.New("no daemon answers: is understudyd running, and are you root?")

// ErrNoEndpoint marks an endpoint on the network that does not answer, or that
// is not to be trusted.
var ErrNoEndpoint = errors.New("the endpoint does not answer as it should: is it on in its [api], and is this its certificate?")

func (c *Client) call(ctx context.Context, method, path string, result any) error {
	resp, err := c.send(ctx, method, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return c.refusal(resp)
	}
	body, err := c.body(resp)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("%s: the answer to %s: %w", c.socket, path, err)
	}
	return nil
}

// send asks, and returns an answer whose body the caller closes.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fmt.Errorf("%s: %w", c.socket, ctx.Err()) // given up, which says nothing of the daemon
	case err != nil && c.base == c.socket:
		return nil, fmt.Errorf("%w: %w", ErrNoEndpoint, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", c.socket, ErrNoDaemon, err)
	}
	return resp, nil
}

// body reads an answer that is one value.
func (c *Client) body(resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: read the answer: %w", c.socket, err)
	case len(body) > MaxBody:
		return nil, fmt.Errorf("%s: the answer to %s has more than %d bytes", c.socket, resp.Request.URL.Path, MaxBody)
	}
	return body, nil
}

// refusal is the error of an answer that is not 2xx.
func (c *Client) refusal(resp *http.Response) error {
	body, err := c.body(resp)
	if err != nil {
		return err
	}
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		e.Error = resp.Status
	}
	return errors.New(e.Error)
}
