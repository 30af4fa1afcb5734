package daemon

// This file keeps the addresses of the other hosts: those of the configuration.

import (
	"sync"

	"understudy/config"
	"understudy/failover"
	"understudy/ownership"
)

// book is where the hosts are.
type book struct {
	mu    sync.Mutex
	hosts []failover.Peer
}

func newBook(c *config.Config) *book {
	b := &book{}
	b.set(c)
	return b
}

func (b *book) set(c *config.Config) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts = nil
	for _, h := range c.Hosts {
		b.hosts = append(b.hosts, failover.Peer{ID: ownership.HostID(h.Name), Address: h.Address, Witness: h.Witness})
	}
}

// peers are the configuration's hosts, in its order.
func (b *book) peers() []failover.Peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]failover.Peer(nil), b.hosts...)
}

// names are those that may connect to this host.
func (b *book) names() (all []string) {
	for _, p := range b.peers() {
		all = append(all, string(p.ID))
	}
	return all
}

// ids are the same.
func (b *book) ids() (all []ownership.HostID) {
	for _, p := range b.peers() {
		all = append(all, p.ID)
	}
	return all
}

// address is where a host is, "" if it is not known.
func (b *book) address(of ownership.HostID) string {
	for _, p := range b.peers() {
		if p.ID == of {
			return p.Address
		}
	}
	return ""
}
