package pki

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzReadFiles feeds bytes to what reads certificates and keys: no panic, and
// what is read is what the one block of the file holds.
func FuzzReadFiles(f *testing.F) {
	dir := f.TempDir()
	if err := Init(dir, []string{"a"}, time.Hour); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{CertificateFile(dir, "a"), KeyFile(dir, "a"), AuthorityFile(dir), AuthorityKeyFile(dir)} {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(text[:len(text)/2])
		f.Add(append(text, text...))
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "file.pem")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cert, err := ReadCertificate(path)
		if err == nil {
			block, _ := pem.Decode(text)
			if again, err := x509.ParseCertificate(block.Bytes); err != nil || !again.Equal(cert) {
				t.Errorf("another certificate than the file's was read (%v)", err)
			}
		}
		key, err := ReadKey(path)
		if err == nil && key.Public() == nil {
			t.Error("a key without a public half was read")
		}
	})
}
