package status

// The file of bearer tokens: a line for each, its name, its role and the
// SHA-256 of the secret in hexadecimal, so that who reads the file can use none
// of them. Secrets are drawn by NewToken and not chosen by people: they need no
// slow hash. The file is looked at with every request that shows a token, so
// that a token that was taken out of it is worth nothing at once; a file that
// cannot be read, or has a mistake in it, lets nobody in.
//
//	# who      role     sha256
//	grafana    read     9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//	ops        operate  …

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"unicode"

	"understudy/filestamp"
)

const (
	maxTokenFile = 64 << 10 // bytes
	maxTokens    = 256
	maxTokenName = 64 // bytes
	// Of a secret, in bytes.
	minSecret = 16
	maxSecret = 256
)

// Token is one line.
type Token struct {
	Name  string
	Level Level // Read or Operate
	Hash  [sha256.Size]byte
}

// Line is the token as it is written in the file.
func (t Token) Line() string {
	return fmt.Sprintf("%s %s %s", t.Name, t.Level, hex.EncodeToString(t.Hash[:]))
}

// NewToken draws a secret of 256 random bits and returns it with its line for
// the file. Nothing but the secret's hash is kept of it.
func NewToken(name string, level Level) (secret string, t Token, err error) {
	var b [32]byte
	rand.Read(b[:])
	secret = "us_" + base64.RawURLEncoding.EncodeToString(b[:])
	t = Token{Name: name, Level: level, Hash: sha256.Sum256([]byte(secret))}
	if level > Operate { // Root is nobody's on the network
		return "", Token{}, fmt.Errorf("a token of level %d", level)
	}
	if _, err := ParseTokens([]byte(t.Line())); err != nil {
		return "", Token{}, err
	}
	return secret, t, nil
}

// ParseTokens reads the lines of a file. Errors name the line.
func ParseTokens(text []byte) ([]Token, error) {
	if len(text) > maxTokenFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxTokenFile)
	}
	var all []Token
	names := map[string]bool{}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		fields := strings.Fields(string(line))
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("line %d has %d words; want: NAME read|operate SHA256", number, len(fields))
		}
		t := Token{Name: fields[0]}
		switch {
		case len(t.Name) > maxTokenName || strings.ContainsFunc(t.Name, notPrinted):
			return nil, fmt.Errorf("line %d: %.80q is not a name of at most %d printable characters", number, t.Name, maxTokenName)
		case names[t.Name]:
			return nil, fmt.Errorf("line %d: there is another token %q", number, t.Name)
		case len(all) == maxTokens:
			return nil, fmt.Errorf("line %d: there are more than %d tokens", number, maxTokens)
		}
		names[t.Name] = true
		switch fields[1] {
		case Read.String():
			t.Level = Read
		case Operate.String():
			t.Level = Operate
		default:
			return nil, fmt.Errorf("line %d: %.40q is none of the roles read and operate", number, fields[1])
		}
		if hex.DecodedLen(len(fields[2])) != len(t.Hash) {
			return nil, fmt.Errorf("line %d: a SHA-256 has %d hexadecimal digits, not %d (printf %%s TOKEN | sha256sum)", number, 2*len(t.Hash), len(fields[2]))
		}
		if _, err := hex.Decode(t.Hash[:], []byte(fields[2])); err != nil {
			return nil, fmt.Errorf("line %d: the SHA-256: %w", number, err)
		}
		all = append(all, t)
	}
	return all, nil
}

func notPrinted(r rune) bool { return !unicode.IsGraphic(r) || r == unicode.ReplacementChar }

// tokenFile is a file of tokens as it is now.
type tokenFile struct {
	path string
	slog *slog.Logger

	mu     sync.Mutex
	seen   filestamp.Stamp
	tokens []Token
	err    error
}

// find returns the token whose secret this is.
func (f *tokenFile) find(secret string) (Token, error) {
	tokens, err := f.read()
	if err != nil {
		return Token{}, errors.New("this endpoint cannot read its tokens: see its log")
	}
	hash := sha256.Sum256([]byte(secret))
	found := -1
	for i := range tokens { // all of them: what is compared takes equally long whoever asks
		if subtle.ConstantTimeCompare(hash[:], tokens[i].Hash[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return Token{}, errors.New("the bearer token is not known here")
	}
	return tokens[found], nil
}

// read returns the file's tokens, read again if it has changed.
func (f *tokenFile) read() ([]Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err == nil && f.seen != (filestamp.Stamp{}) && filestamp.Of(info) == f.seen {
		return f.tokens, f.err
	}
	before := f.err
	f.seen, f.tokens, f.err = filestamp.Stamp{}, nil, err
	if err == nil {
		f.seen, f.tokens, f.err = readTokens(f.path)
	}
	switch {
	case f.err != nil && (before == nil || before.Error() != f.err.Error()):
		f.slog.Error("no token lets anybody in", "file", f.path, "err", f.err)
	case f.err == nil:
		f.slog.Info("tokens read", "file", f.path, "tokens", len(f.tokens))
	}
	return f.tokens, f.err
}

func readTokens(path string) (filestamp.Stamp, []Token, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would wait for its writer
	if err != nil {
		return filestamp.Stamp{}, nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return filestamp.Stamp{}, nil, err
	}
	seen := filestamp.Of(info)
	switch {
	case !info.Mode().IsRegular():
		return seen, nil, errors.New("it is no regular file")
	case info.Mode().Perm()&0o022 != 0:
		return seen, nil, fmt.Errorf("others than its owner may write to it (mode %v): chmod go-w", info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, maxTokenFile+1))
	if err != nil {
		return filestamp.Stamp{}, nil, err
	}
	tokens, err := ParseTokens(text)
	return seen, tokens, err
}
