// Package pki makes the private certificate authority of one understudy
// installation and the certificates of its hosts. They are all that hosts
// trust each other by: package transport demands a certificate of this
// authority, and that it names the host it should.
//
// The files of one directory, in the order in which they come into being:
//
//	ca.pem        the authority's certificate; every host needs it
//	ca-key.pem    the authority's key; needed only to issue, keep it off the hosts
//	NAME.pem      the certificate of host NAME
//	NAME-key.pem  its key; belongs on host NAME alone
//
// Every file is written whole or not at all, with mode 0600.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// Domain is the suffix of the DNS name a certificate carries: host "a" is
// "a.understudy.internal". The top-level domain "internal" is reserved for
// private use (ICANN resolution 2024.07.29.06), so no public authority will
// ever sign such a name.
const Domain = "understudy.internal"

// Validities. A host's certificate may not outlive the authority.
const (
	AuthorityValidity   = 10 * 365 * 24 * time.Hour
	DefaultHostValidity = 5 * 365 * 24 * time.Hour
	// backdate tolerates a host whose clock is behind that of the issuer.
	backdate = time.Hour
)

// maxPEM bounds a certificate or key file, in bytes, before it is read.
const maxPEM = 64 << 10

// CheckName says why host cannot be the name of a host: it has to be one
// lower-case DNS label (letters, digits, hyphens; 1 to 63 bytes), so that it
// can stand in a certificate and in a file name. The name "ca" is taken.
func CheckName(host string) error {
	switch {
	case host == "":
		return errors.New("a host's name is empty")
	case len(host) > 63:
		return fmt.Errorf("host name %.16q… has %d bytes; at most 63 are possible", host, len(host))
	case host == "ca":
		return errors.New(`host name "ca" is taken by the files of the certificate authority; choose another`)
	case strings.HasSuffix(host, "-key"):
		return fmt.Errorf("host name %q ends in \"-key\", which names key files; choose another", host)
	case host[0] == '-' || host[len(host)-1] == '-':
		return fmt.Errorf("host name %q begins or ends with a hyphen", host)
	}
	for _, c := range []byte(host) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return fmt.Errorf("host name %q: only lower-case letters, digits and hyphens are possible", host)
		}
	}
	return nil
}

// DNSName is the name by which the certificate of a host knows it.
func DNSName(host string) string { return host + "." + Domain }

// HostName is the inverse of DNSName; ok is false for a name of another domain
// or of no host.
func HostName(dns string) (host string, ok bool) {
	host, ok = strings.CutSuffix(dns, "."+Domain)
	if !ok || CheckName(host) != nil {
		return "", false
	}
	return host, true
}

// CertificateFile and KeyFile are the paths of a host's files in dir.
func CertificateFile(dir, host string) string { return filepath.Join(dir, host+".pem") }

// KeyFile is the path of a host's key in dir.
func KeyFile(dir, host string) string { return filepath.Join(dir, host+"-key.pem") }

// AuthorityFile is the path of the authority's certificate in dir.
func AuthorityFile(dir string) string { return filepath.Join(dir, "ca.pem") }

// AuthorityKeyFile is the path of the authority's key in dir.
func AuthorityKeyFile(dir string) string { return filepath.Join(dir, "ca-key.pem") }

// Init makes a new authority in dir and issues a certificate for each host,
// valid for the given time (zero: DefaultHostValidity). It makes dir (0700) if
// it is not there. It refuses a directory that already holds an authority:
// replacing it would lock out every host that still trusts the old one.
func Init(dir string, hosts []string, validity time.Duration) error {
	seen := make(map[string]bool, len(hosts))
	for _, h := range hosts {
		if err := CheckName(h); err != nil {
			return err
		}
		if seen[h] {
			return fmt.Errorf("host name %q is given twice", h)
		}
		seen[h] = true
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the certificate directory: %w", err)
	}
	names := []string{AuthorityFile(dir), AuthorityKeyFile(dir)}
	for _, h := range hosts {
		names = append(names, CertificateFile(dir, h), KeyFile(dir, h))
	}
	for _, name := range names {
		if _, err := os.Lstat(name); err == nil {
			return fmt.Errorf("%s already exists: this directory has been initialised; choose another, or remove it if no host uses it any more", name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for existing certificates: %w", err)
		}
	}
	a, err := NewAuthority(time.Now())
	if err != nil {
		return err
	}
	for _, h := range hosts {
		pair, err := a.Issue(h, time.Now(), validity)
		if err != nil {
			return err
		}
		if err := pair.Save(dir); err != nil {
			return err
		}
	}
	return a.Save(dir)
}

// Reissue makes a new certificate and key for one host in dir, signed by the
// authority there: to renew one that runs out, or to add a host.
func Reissue(dir, host string, validity time.Duration) error {
	a, err := LoadAuthority(dir)
	if err != nil {
		return err
	}
	pair, err := a.Issue(host, time.Now(), validity)
	if err != nil {
		return err
	}
	return pair.Save(dir)
}

// Authority is the certificate authority of one installation.
type Authority struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// NewAuthority draws a new authority, valid from now on for
// AuthorityValidity. It can sign nothing but names below Domain.
func NewAuthority(now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("draw the key of the certificate authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:                serial,
		Subject:                     pkix.Name{CommonName: fmt.Sprintf("understudy authority %x", serial.Bytes()[:4])},
		NotBefore:                   now.Add(-backdate),
		NotAfter:                    now.Add(AuthorityValidity),
		KeyUsage:                    x509.KeyUsageCertSign,
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{Domain},
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of the authority: %w", err)
	}
	return &Authority{Certificate: cert, key: key}, nil
}

// LoadAuthority reads ca.pem and ca-key.pem from dir.
func LoadAuthority(dir string) (*Authority, error) {
	cert, err := ReadCertificate(AuthorityFile(dir))
	if err != nil {
		return nil, fmt.Errorf("load the certificate authority: %w", err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("load the certificate authority: %s is not the certificate of an authority", AuthorityFile(dir))
	}
	key, err := ReadKey(AuthorityKeyFile(dir))
	if err != nil {
		return nil, fmt.Errorf("load the certificate authority (its key is needed to issue certificates): %w", err)
	}
	if !Matches(cert, key) {
		return nil, fmt.Errorf("load the certificate authority: %s is not the key of %s", AuthorityKeyFile(dir), AuthorityFile(dir))
	}
	return &Authority{Certificate: cert, key: key}, nil
}

// Save writes ca-key.pem and ca.pem into dir. ca.pem comes last: where it is,
// the rest is.
func (a *Authority) Save(dir string) error {
	if err := writeKey(AuthorityKeyFile(dir), a.key); err != nil {
		return err
	}
	return writeCertificate(AuthorityFile(dir), a.Certificate)
}

// Issue makes a key and certificate for host, for both ends of a connection,
// valid from now on for the given time (zero: DefaultHostValidity), but not
// longer than the authority itself.
func (a *Authority) Issue(host string, now time.Time, validity time.Duration) (*Pair, error) {
	if err := CheckName(host); err != nil {
		return nil, err
	}
	if validity == 0 {
		validity = DefaultHostValidity
	}
	if validity < 0 {
		return nil, fmt.Errorf("issue a certificate for %q: a validity of %v is not possible", host, validity)
	}
	if now.After(a.Certificate.NotAfter) {
		return nil, fmt.Errorf("issue a certificate for %q: the authority itself ran out on %s; make a new one with `understudy init`",
			host, a.Certificate.NotAfter.Format(time.DateOnly))
	}
	until := now.Add(validity)
	if until.After(a.Certificate.NotAfter) {
		until = a.Certificate.NotAfter
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("draw the key of host %q: %w", host, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: host},
		DNSNames:              []string{DNSName(host)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, a.Certificate, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %q: %w", host, err)
	}
	return &Pair{Host: host, Certificate: cert, Key: key}, nil
}

// Pair is a host's certificate with its key.
type Pair struct {
	Host        string
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Save writes NAME-key.pem and NAME.pem into dir. The two files cannot be
// replaced in one step; a crash in between leaves a key that does not match,
// which is said when it is loaded, and Save again repairs it.
func (p *Pair) Save(dir string) error {
	if err := writeKey(KeyFile(dir, p.Host), p.Key); err != nil {
		return err
	}
	return writeCertificate(CertificateFile(dir, p.Host), p.Certificate)
}

// ReadCertificate reads the one certificate of a PEM file.
func ReadCertificate(path string) (*x509.Certificate, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parseCertificate(path, text)
}

// ReadKey reads the one private key (PKCS #8) of a PEM file.
func ReadKey(path string) (crypto.Signer, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parseKey(path, text)
}

func parseCertificate(path string, text []byte) (*x509.Certificate, error) {
	der, err := parsePEM(path, text, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", path, err)
	}
	return cert, nil
}

func parseKey(path string, text []byte) (crypto.Signer, error) {
	der, err := parsePEM(path, text, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("private key %s: %w", path, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key %s: a %T cannot sign", path, parsed)
	}
	return key, nil
}

// Matches reports whether key is the private key of cert.
func Matches(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxPEM {
		return nil, fmt.Errorf("%s is not a PEM file: not a regular file of at most %d bytes", path, maxPEM)
	}
	return os.ReadFile(path)
}

func parsePEM(path string, text []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%s holds no PEM block", path)
	case block.Type != kind:
		return nil, fmt.Errorf("%s holds a PEM block %q where %q belongs", path, block.Type, kind)
	case len(strings.TrimSpace(string(rest))) > 0:
		return nil, fmt.Errorf("%s holds more than one PEM block", path)
	}
	return block.Bytes, nil
}

func writeKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key for %s: %w", path, err)
	}
	return write(path, "PRIVATE KEY", der)
}

func writeCertificate(path string, cert *x509.Certificate) error {
	return write(path, "CERTIFICATE", cert.Raw)
}

func write(path, kind string, der []byte) error {
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	// The mode must hold whatever the umask and whatever stood there before.
	if err := renameio.WriteFile(path, data, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial draws a positive serial number of 127 random bits (RFC 5280,
// section 4.1.2.2, allows 20 bytes).
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always 16 bytes long
	return new(big.Int).SetBytes(b[:]), nil
}
