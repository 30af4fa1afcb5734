package transport

// Who this host is and whom it believes. LoadIdentity reads what package pki
// wrote and checks all that a handshake would trip over, so that a wrong
// certificate is found when the daemon starts and not when its peer dies. After
// Follow the same is done whenever the files have been replaced. The two TLS
// configurations below are the only ones in the program.

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"understudy/filestamp"
	"understudy/transport/pki"
)

// Identity is a host's certificate and key, and the authority it trusts.
type Identity struct {
	host string

	mu    sync.Mutex
	cred  *credentials
	dir   string // "" where there are no files to follow
	tried []filestamp.Stamp
	log   *slog.Logger
}

// credentials are what a handshake goes by.
type credentials struct {
	cert  tls.Certificate
	leaf  *x509.Certificate
	ca    *x509.Certificate
	roots *x509.CertPool
}

// LoadIdentity reads ca.pem, HOST.pem and HOST-key.pem from dir and checks that
// the key belongs to the certificate, that the certificate names the host, is
// signed by the authority for both ends of a connection, and is valid now.
func LoadIdentity(dir, host string) (*Identity, error) {
	if err := pki.CheckName(host); err != nil {
		return nil, fmt.Errorf("load the identity of this host: %w", err)
	}
	c, tried, err := loadCredentials(dir, host)
	if err != nil {
		return nil, err
	}
	return &Identity{host: host, cred: c, dir: dir, tried: tried}, nil
}

// Follow has every handshake from now on look whether the files were replaced, and
// use the new ones if they are right; log is told, also of such as are not.
func (id *Identity) Follow(log *slog.Logger) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.log = log
}

func loadCredentials(dir, host string) (c *credentials, tried []filestamp.Stamp, err error) {
	// First, so that what is replaced meanwhile is read again. Whoever reads a file
	// says what is wrong with it.
	tried, _ = filestamp.All(filesOf(dir, host)...)
	ca, err := pki.ReadCertificate(pki.AuthorityFile(dir))
	if err != nil {
		return nil, tried, fmt.Errorf("load the identity of host %q: the authority's certificate: %w", host, err)
	}
	leaf, err := pki.ReadCertificate(pki.CertificateFile(dir, host))
	if err != nil {
		return nil, tried, fmt.Errorf("load the identity of host %q: its certificate: %w", host, err)
	}
	key, err := pki.ReadKey(pki.KeyFile(dir, host))
	if err != nil {
		return nil, tried, fmt.Errorf("load the identity of host %q: its key: %w", host, err)
	}
	c = newCredentials(ca, leaf, key)
	if err := c.check(host, time.Now()); err != nil {
		return nil, tried, fmt.Errorf("load the identity of host %q from %s: %w", host, pki.CertificateFile(dir, host), err)
	}
	return c, tried, nil
}

func filesOf(dir, host string) []string {
	return []string{pki.AuthorityFile(dir), pki.CertificateFile(dir, host), pki.KeyFile(dir, host)}
}

func newCredentials(ca, leaf *x509.Certificate, key crypto.Signer) *credentials {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &credentials{
		cert:  tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		leaf:  leaf,
		ca:    ca,
		roots: roots,
	}
}

func (c *credentials) check(host string, now time.Time) error {
	key, ok := c.cert.PrivateKey.(crypto.Signer)
	if !ok || !pki.Matches(c.leaf, key) {
		return errors.New("the key does not belong to the certificate; copy both files again, or issue a new pair")
	}
	if name, err := hostOf(c.leaf); err != nil {
		return fmt.Errorf("%w; issue a certificate for this host", err)
	} else if name != host {
		return fmt.Errorf("the certificate is for host %q; issue one for this host", name)
	}
	for _, one := range []struct {
		what string
		cert *x509.Certificate
	}{{"the certificate authority", c.ca}, {"the certificate", c.leaf}} {
		if now.Before(one.cert.NotBefore) {
			return fmt.Errorf("%s is valid only from %s (now %s); set the clock of this host", one.what, stamp(one.cert.NotBefore), stamp(now))
		}
		if now.After(one.cert.NotAfter) {
			return fmt.Errorf("%s ran out on %s (now %s); issue a new one, or set the clock of this host", one.what, stamp(one.cert.NotAfter), stamp(now))
		}
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := c.leaf.Verify(x509.VerifyOptions{
			Roots: c.roots, DNSName: pki.DNSName(host), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
		})
		if err != nil {
			return fmt.Errorf("the certificate is not one of this authority for both ends of a connection: %w", err)
		}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Host is the name of this host.
func (id *Identity) Host() string { return id.host }

// NotAfter is when this host's certificate runs out.
func (id *Identity) NotAfter() time.Time { return id.now().leaf.NotAfter }

// AuthorityNotAfter is when that of the authority does, and with it every host's.
func (id *Identity) AuthorityNotAfter() time.Time { return id.now().ca.NotAfter }

// now is what holds now. Files that are wrong, or not all there yet, change nothing,
// and are looked at again when they have changed once more.
func (id *Identity) now() *credentials {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.log == nil {
		return id.cred
	}
	if seen, err := filestamp.All(filesOf(id.dir, id.host)...); err != nil || slices.Equal(seen, id.tried) {
		return id.cred
	}
	c, tried, err := loadCredentials(id.dir, id.host)
	if id.tried = tried; err != nil {
		id.log.Error("this host goes on with its former certificate", "err", err)
		return id.cred
	}
	id.cred = c
	id.log.Info("this host has a new certificate", "file", pki.CertificateFile(id.dir, id.host), "until", c.leaf.NotAfter)
	return id.cred
}

// dialConfig demands that the peer is the host called peer and speaks protocol.
func (id *Identity) dialConfig(peer, protocol string) *tls.Config {
	c := id.now()
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    c.roots,
		ServerName: pki.DNSName(peer),
		NextProtos: []string{protocol},
		// Not Certificates: a client would then keep its certificate back from
		// a listener of another authority, which could only report that there
		// was none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.cert, nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the peer sent no certificate")
			}
			name, err := hostOf(cs.PeerCertificates[0])
			if err != nil {
				return err
			}
			if name != peer {
				return fmt.Errorf("the peer is host %q, not %q", name, peer)
			}
			return nil
		},
		DynamicRecordSizingDisabled: true, // bulk data: 16 KiB records from the start
	}
}

// listenConfig takes peers whose name is allowed, and any protocol for which
// protocols has a name.
func (id *Identity) listenConfig(allowed map[string]bool, protocols []string) *tls.Config {
	c := id.now()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{c.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              c.roots,
		NextProtos:             protocols,
		SessionTicketsDisabled: true, // every connection shows its certificate anew
		VerifyConnection: func(cs tls.ConnectionState) error {
			name, err := hostOf(cs.PeerCertificates[0])
			if err != nil {
				return err
			}
			if !allowed[name] {
				return fmt.Errorf("host %q is not in the configuration of this one", name)
			}
			if cs.NegotiatedProtocol == "" {
				return fmt.Errorf("host %q named no protocol", name)
			}
			return nil
		},
		DynamicRecordSizingDisabled: true,
	}
}

// hostOf is the one host that a certificate names.
func hostOf(cert *x509.Certificate) (string, error) {
	if len(cert.DNSNames) != 1 {
		return "", fmt.Errorf("the certificate names %d hosts, not one", len(cert.DNSNames))
	}
	host, ok := pki.HostName(cert.DNSNames[0])
	if !ok {
		return "", fmt.Errorf("the certificate's name %.80q is not of the form HOST.%s", cert.DNSNames[0], pki.Domain)
	}
	return host, nil
}

// PeerName is the host at the other end of conn, as its verified certificate
// names it; "" if conn is no TLS connection or its handshake is not complete.
func PeerName(conn net.Conn) string {
	t, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return ""
	}
	cs := t.ConnectionState()
	if !cs.HandshakeComplete || len(cs.VerifiedChains) == 0 {
		return ""
	}
	host, err := hostOf(cs.PeerCertificates[0])
	if err != nil {
		return ""
	}
	return host
}
