package vhost

// This file is what the guest is told of the device: its features and its
// configuration space (virtio 1.2, 5.2.3 and 5.2.4).

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy/disk"
	"understudy/epoch"
)

const (
	featureSizeMax     = 1 << 1
	featureSegMax      = 1 << 2
	featureRO          = 1 << 5
	featureBlkSize     = 1 << 6
	featureFlush       = 1 << 9
	featureTopology    = 1 << 10
	featureConfigWCE   = 1 << 11
	featureMQ          = 1 << 12
	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14
	featureLogAll      = 1 << 26 // VHOST_F_LOG_ALL
	featureIndirect    = 1 << 28
	featureEventIdx    = 1 << 29
	featureProtocol    = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureVersion1    = 1 << 32
)

// configSize is struct virtio_blk_config up to write_zeroes_may_unmap and its
// padding; more than that reads as zero.
const (
	configSize = 60
	configWCE  = 32
	maxConfig  = 256
)

// limits are what bounds a request.
type limits struct {
	segMax, sizeMax uint32 // told to the guest: segments, bytes of each
	maxBytes        uint64 // of one read or write
	maxZero         uint64 // sectors of one discard or write-zeroes; 0: none is offered
}

// limitsOf chooses segments such that no request can be longer than the
// backend takes.
func limitsOf(info disk.Info, cfg Config) (limits, error) {
	switch {
	case cfg.Queues < 1 || cfg.Queues > MaxQueues:
		return limits{}, fmt.Errorf("%d queues, want 1 to %d", cfg.Queues, MaxQueues)
	case cfg.QueueSize < 4 || cfg.QueueSize > MaxQueueSize || cfg.QueueSize&(cfg.QueueSize-1) != 0:
		return limits{}, fmt.Errorf("rings of %d entries, want a power of two from 4 to %d", cfg.QueueSize, MaxQueueSize)
	case info.Sectors > epoch.MaxSectors:
		return limits{}, fmt.Errorf("a disk of %d sectors, at most %d are possible", info.Sectors, uint64(epoch.MaxSectors))
	case info.MaxSectors < epoch.PageSectors || info.MaxSectors > 1<<20:
		return limits{}, fmt.Errorf("requests of at most %d sectors, want %d to %d", info.MaxSectors, epoch.PageSectors, 1<<20)
	case cfg.Workers < 1:
		return limits{}, errors.New("no workers")
	case len(info.Serial) > serialSize:
		return limits{}, fmt.Errorf("serial %q has more than %d bytes", info.Serial, serialSize)
	}
	l := limits{maxBytes: uint64(info.MaxSectors) * epoch.SectorSize, maxZero: uint64(info.MaxZeroSectors)}
	if info.ReadOnly {
		l.maxZero = 0
	}
	// Two descriptors of a chain are the header's and the status byte's.
	l.segMax = uint32(min(uint64(cfg.QueueSize-2), 126, l.maxBytes/epoch.PageSize))
	l.sizeMax = uint32(l.maxBytes/uint64(l.segMax)) &^ (epoch.PageSize - 1)
	return l, nil
}

func (s *Server) features() uint64 {
	f := uint64(featureSizeMax | featureSegMax | featureBlkSize | featureFlush | featureTopology | featureConfigWCE |
		featureLogAll | featureIndirect | featureEventIdx | featureProtocol | featureVersion1)
	if s.info.ReadOnly {
		f |= featureRO
	}
	if len(s.rings) > 1 {
		f |= featureMQ
	}
	if s.limits.maxZero > 0 {
		f |= featureDiscard | featureWriteZeroes
	}
	return f
}

// configSpace returns the configuration space.
func (s *Server) configSpace() [maxConfig]byte {
	var c [maxConfig]byte
	le := binary.LittleEndian
	le.PutUint64(c[0:], s.info.Sectors)
	le.PutUint32(c[8:], s.limits.sizeMax)
	le.PutUint32(c[12:], s.limits.segMax)
	le.PutUint32(c[20:], epoch.SectorSize) // block size
	// A guest that keeps to whole pages lets more of them be left out.
	c[24] = 3                                  // physical block: 2^3 blocks
	le.PutUint16(c[26:], epoch.PageSectors)    // smallest good request, in blocks
	c[configWCE] = byte(s.wce.Load())          // write cache
	le.PutUint16(c[34:], uint16(len(s.rings))) // queues
	if s.limits.maxZero > 0 {
		le.PutUint32(c[36:], uint32(s.limits.maxZero)) // discard
		le.PutUint32(c[40:], 1)
		le.PutUint32(c[44:], epoch.PageSectors)
		le.PutUint32(c[48:], uint32(s.limits.maxZero)) // write zeroes
		le.PutUint32(c[52:], 1)
		c[56] = 1 // may unmap
	}
	return c
}

// setConfig changes what the guest may change: whether writes are cached.
func (c *session) setConfig(part configPart) error {
	if part.off != configWCE || part.size != 1 || part.data[0] > 1 {
		return fmt.Errorf("%d bytes at %d of the configuration space are not to be written", part.size, part.off)
	}
	c.s.wce.Store(uint32(part.data[0]))
	c.noteCache()
	return nil
}

// noteCache decides when a write is complete (virtio 1.2, 5.2.6.2).
func (c *session) noteCache() {
	through := c.features&featureFlush == 0 || c.features&featureConfigWCE != 0 && c.s.wce.Load() == 0
	c.s.writeThrough.Store(through)
	c.shared.setWCE(byte(c.s.wce.Load()))
}
