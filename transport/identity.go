package transport

// Who this host is and whom it believes. LoadIdentity reads what package pki
// wrote and checks all that a handshake would trip over, so that a wrong
// certificate is found when the daemon starts and not when its peer dies. The
// two TLS configurations below are the only ones in the program.

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"understudy/transport/pki"
)

// Identity is a host's certificate and key, and the authority it trusts.
type Identity struct {
	host  string
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
	ca, err := pki.ReadCertificate(pki.AuthorityFile(dir))
	if err != nil {
		return nil, fmt.Errorf("load the identity of host %q: the authority's certificate: %w", host, err)
	}
	leaf, err := pki.ReadCertificate(pki.CertificateFile(dir, host))
	if err != nil {
		return nil, fmt.Errorf("load the identity of host %q: its certificate: %w", host, err)
	}
	key, err := pki.ReadKey(pki.KeyFile(dir, host))
	if err != nil {
		return nil, fmt.Errorf("load the identity of host %q: its key: %w", host, err)
	}
	id := newIdentity(host, ca, leaf, key)
	if err := id.check(ca, time.Now()); err != nil {
		return nil, fmt.Errorf("load the identity of host %q from %s: %w", host, pki.CertificateFile(dir, host), err)
	}
	return id, nil
}

func newIdentity(host string, ca, leaf *x509.Certificate, key crypto.Signer) *Identity {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &Identity{
		host:  host,
		cert:  tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		leaf:  leaf,
		ca:    ca,
		roots: roots,
	}
}

func (id *Identity) check(ca *x509.Certificate, now time.Time) error {
	key, ok := id.cert.PrivateKey.(crypto.Signer)
	if !ok || !pki.Matches(id.leaf, key) {
		return errors.New("the key does not belong to the certificate; copy both files again, or issue a new pair")
	}
	if name, err := hostOf(id.leaf); err != nil {
		return fmt.Errorf("%w; issue a certificate for this host", err)
	} else if name != id.host {
		return fmt.Errorf("the certificate is for host %q; issue one for this host", name)
	}
	for _, c := range []struct {
		what string
		cert *x509.Certificate
	}{{"the certificate authority", ca}, {"the certificate", id.leaf}} {
		if now.Before(c.cert.NotBefore) {
			return fmt.Errorf("%s is valid only from %s (now %s); set the clock of this host", c.what, stamp(c.cert.NotBefore), stamp(now))
		}
		if now.After(c.cert.NotAfter) {
			return fmt.Errorf("%s ran out on %s (now %s); issue a new one, or set the clock of this host", c.what, stamp(c.cert.NotAfter), stamp(now))
		}
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := id.leaf.Verify(x509.VerifyOptions{
			Roots: id.roots, DNSName: pki.DNSName(id.host), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
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
func (id *Identity) NotAfter() time.Time { return id.leaf.NotAfter }

// AuthorityNotAfter is when that of the authority does, and with it every host's.
func (id *Identity) AuthorityNotAfter() time.Time { return id.ca.NotAfter }

// dialConfig demands that the peer is the host called peer and speaks protocol.
func (id *Identity) dialConfig(peer, protocol string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    id.roots,
		ServerName: pki.DNSName(peer),
		NextProtos: []string{protocol},
		// Not Certificates: a client would then keep its certificate back from
		// a listener of another authority, which could only report that there
		// was none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id.cert, nil },
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
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              id.roots,
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
