package pki

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// FuzzReadFiles feeds bytes to what reads certificates and keys: no panic, and
// what is read is what the one block of the file holds. The files are left out, and
// the corpus has keys that do not change: an execution takes microseconds, and the
// same input always the same way.
func FuzzReadFiles(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		read(t, text)
		// Through base64 the fuzzer does not get far: bytes as those inside of it.
		read(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: text}))
		read(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
	})
}

// read reads a file as what it may be.
func read(t *testing.T, text []byte) {
	if cert, err := parseCertificate("file.pem", text); err == nil {
		block, _ := pem.Decode(text)
		if again, err := x509.ParseCertificate(block.Bytes); err != nil || !again.Equal(cert) {
			t.Errorf("another certificate than the file's was read (%v)", err)
		}
	}
	if key, err := parseKey("file.pem", text); err == nil && key.Public() == nil {
		t.Error("a key without a public half was read")
	}
}
