package pki

import (
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestInitMakesCertificatesThatVerify(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	hosts := []string{"a", "b", "witness-1"}
	if err := Init(dir, hosts, 30*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	ca, err := ReadCertificate(AuthorityFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(ca.NotAfter); left < AuthorityValidity-time.Minute || left > AuthorityValidity {
		t.Errorf("the authority is valid for another %v", left)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, h := range hosts {
		cert, err := ReadCertificate(CertificateFile(dir, h))
		if err != nil {
			t.Fatal(err)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: DNSName(h), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("host %s, usage %d: %v", h, usage, err)
			}
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: DNSName("c")}); err == nil {
			t.Errorf("the certificate of %s passes for host c", h)
		}
		key, err := ReadKey(KeyFile(dir, h))
		if err != nil {
			t.Fatal(err)
		}
		if !Matches(cert, key) {
			t.Errorf("host %s: key and certificate do not match", h)
		}
		if left := time.Until(cert.NotAfter); left < 29*24*time.Hour || left > 30*24*time.Hour {
			t.Errorf("host %s: valid for another %v, asked for 30 days", h, left)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInitRefusesWhatItWouldHarm(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, []string{"a"}, 0); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(AuthorityFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, Init(dir, []string{"b"}, 0), "already exists")
	after, err := os.ReadFile(AuthorityFile(dir))
	if err != nil || string(after) != string(before) {
		t.Errorf("a refused Init touched the authority (%v)", err)
	}
	fresh := filepath.Join(t.TempDir(), "x")
	wantError(t, Init(fresh, []string{"b", "b"}, 0), "twice")
	wantError(t, Init(fresh, []string{"../b"}, 0), "only lower-case")
	if _, err := os.Stat(fresh); err == nil {
		t.Error("a refused Init left a directory behind")
	}
}

func TestReissueReplacesAHostsCertificate(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, []string{"a"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := Reissue(dir, "a", 0); err != nil {
		t.Fatal(err)
	}
	cert, err := ReadCertificate(CertificateFile(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if time.Until(cert.NotAfter) < DefaultHostValidity-time.Minute {
		t.Errorf("the new certificate ends %v", cert.NotAfter)
	}
	if err := Reissue(dir, "b", 100*365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	cert, err = ReadCertificate(CertificateFile(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ReadCertificate(AuthorityFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if !cert.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("host certificate ends %v, its authority %v", cert.NotAfter, ca.NotAfter)
	}
	wantError(t, Reissue(dir, "b", -time.Hour), "not possible")
	if err := os.Remove(AuthorityKeyFile(dir)); err != nil {
		t.Fatal(err)
	}
	wantError(t, Reissue(dir, "a", 0), "key is needed to issue")
}

func TestAnOldAuthorityIssuesNothing(t *testing.T) {
	a, err := NewAuthority(time.Now().Add(-2 * AuthorityValidity))
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Issue("a", time.Now(), 0)
	wantError(t, err, "understudy init")
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "host-1", "0", strings.Repeat("x", 63)} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if got, ok := HostName(DNSName(name)); !ok || got != name {
			t.Errorf("%q comes back as %q, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "ca", "A", "a.b", "a_b", "-a", "a-", "a/b", "a-key", "ä", strings.Repeat("x", 64), "a\x00"} {
		if err := CheckName(name); err == nil {
			t.Errorf("%q is accepted", name)
		}
		if _, ok := HostName(DNSName(name)); ok {
			t.Errorf("%q is accepted from a certificate", name)
		}
	}
	if _, ok := HostName("a.example.com"); ok {
		t.Error("a name of another domain is accepted")
	}
}

func TestUnreadableFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, []string{"a"}, 0); err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(CertificateFile(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "odd.pem")
	for _, tt := range []struct{ name, content, want string }{
		{"nothing", "", "no PEM block"},
		{"text", "hello", "no PEM block"},
		{"a key's place", string(cert), `where "PRIVATE KEY" belongs`},
		{"too large", strings.Repeat("x", maxPEM+1), "not a PEM file"},
		{"broken key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "odd.pem"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ReadKey(path)
			wantError(t, err, tt.want)
		})
	}
	if err := os.WriteFile(path, append(cert, cert...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = ReadCertificate(path)
	wantError(t, err, "more than one")
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one that contains %q", err, want)
	}
}
