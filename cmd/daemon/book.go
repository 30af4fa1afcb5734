package daemon

// This file keeps where the hosts are: those of the configuration, and those that
// still vote although the configuration names them no more, as long as they do
// (package failover). The latter are in a file, for a daemon that is started anew in
// the middle of a replacement.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/renameio/v2"

	"understudy/config"
	"understudy/failover"
	"understudy/ownership"
	"understudy/transport"
)

// maxBook bounds the file, in bytes.
const maxBook = 64 << 10

// book is where the hosts are.
type book struct {
	path string

	mu     sync.Mutex
	hosts  []failover.Peer
	former []failover.Peer
}

// openBook reads what a former daemon knew. A file that cannot be read is told, and
// is no reason not to protect guests.
func openBook(state string, c *config.Config, log *slog.Logger) *book {
	b := &book{path: filepath.Join(state, "hosts.json"), hosts: peersOf(c)}
	known, err := readBook(b.path)
	if err != nil {
		log.Warn("where former hosts are is not known: one that is being replaced cannot be reached until it is", "file", b.path, "err", err)
	}
	b.former = slices.DeleteFunc(known, func(p failover.Peer) bool { return b.has(p.ID) })
	if err := prepareDir(state, 0o700); err == nil {
		err = b.save()
		if err != nil {
			log.Warn("where the hosts are is not kept", "err", err)
		}
	}
	return b
}

func peersOf(c *config.Config) (all []failover.Peer) {
	for _, h := range c.Hosts {
		all = append(all, failover.Peer{ID: ownership.HostID(h.Name), Address: h.Address, Witness: h.Witness})
	}
	return all
}

func readBook(path string) ([]failover.Peer, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxBook+1))
	if err != nil {
		return nil, err
	}
	var all []failover.Peer
	if err := json.Unmarshal(text, &all); err != nil || len(text) > maxBook {
		return nil, fmt.Errorf("not a list of hosts, or more than %d bytes: %w", maxBook, err)
	}
	return all, nil
}

// save writes all of it; its caller holds mu, or is alone.
func (b *book) save() error {
	text, err := json.MarshalIndent(append(slices.Clone(b.hosts), b.former...), "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(b.path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep where the hosts are: %w", err)
	}
	return nil
}

func (b *book) has(id ownership.HostID) bool {
	return slices.ContainsFunc(b.hosts, func(p failover.Peer) bool { return p.ID == id })
}

// set makes the hosts of a configuration the hosts; those that it does not name are
// former ones.
func (b *book) set(c *config.Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := append(slices.Clone(b.hosts), b.former...)
	b.hosts, b.former = peersOf(c), nil
	for _, p := range was {
		if !b.has(p.ID) {
			b.former = append(b.former, p)
		}
	}
	return b.save()
}

// forget forgets the former hosts that are not among these.
func (b *book) forget(former []failover.Peer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.former)
	b.former = slices.DeleteFunc(b.former, func(p failover.Peer) bool {
		return !slices.ContainsFunc(former, func(f failover.Peer) bool { return f.ID == p.ID })
	})
	if len(b.former) == before {
		return nil
	}
	return b.save()
}

// peers are the configuration's hosts, in its order.
func (b *book) peers() []failover.Peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.hosts)
}

// formerPeers are those that are not in it any more.
func (b *book) formerPeers() []failover.Peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.former)
}

// names are those that may connect to this host.
func (b *book) names() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.namesLocked()
}

func (b *book) namesLocked() (all []string) {
	for _, p := range append(slices.Clone(b.hosts), b.former...) {
		all = append(all, string(p.ID))
	}
	return all
}

// admit lets them, and nobody else, connect to the port.
func (b *book) admit(port *transport.Port) {
	b.mu.Lock()
	defer b.mu.Unlock()
	port.Allow(b.namesLocked())
}

// ids are the configuration's hosts.
func (b *book) ids() (all []ownership.HostID) {
	for _, p := range b.peers() {
		all = append(all, p.ID)
	}
	return all
}

// address is where a host is, "" if it is not known.
func (b *book) address(of ownership.HostID) string {
	for _, p := range append(b.peers(), b.formerPeers()...) {
		if p.ID == of {
			return p.Address
		}
	}
	return ""
}
