package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"understudy/guest"
	"understudy/guest/client"
	"understudy/guest/diskwork"
	"understudy/guest/image"
	"understudy/host"
)

// Reach is the way to one guest's services.
type Reach struct {
	// Dial connects to a port of the guest, which may not be there yet.
	Dial func(ctx context.Context, port int) (net.Conn, error)
	// Limit bounds each talk on a control connection.
	Limit time.Duration
}

// Control runs f on a control connection of its own.
func (r Reach) Control(ctx context.Context, f func(ctx context.Context, c *client.Control) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.Limit)
	defer cancel()
	conn, err := r.Dial(ctx, guest.ControlPort)
	if err != nil {
		return err
	}
	c := client.NewControl(conn)
	defer func() { _ = c.Close() }()
	return f(ctx, c)
}

// DiskClient keeps, outside of the guest, what the guest said was safely on its
// disk. It is one connection, from the start of the load to Close.
type DiskClient struct {
	reach Reach

	mu     sync.Mutex
	acks   *client.Acks
	newest []diskwork.Ack
	last   uint64
	fault  error
	ended  chan struct{}
	stop   context.CancelFunc
}

// diskLoad writes, syncs and reads all the time, and leaves room for the rest.
var diskLoad = client.DiskWork{Files: 32, Size: 64 << 10, Workers: 2, Every: 5 * time.Millisecond}

// LoadDisk makes a guest use its disk, and follows what it acknowledges.
func (q *QEMU) LoadDisk(ctx context.Context, name string) (*DiskClient, error) {
	return q.LoadDiskWith(ctx, name, diskLoad)
}

// LoadDiskWith is LoadDisk with another load.
func (q *QEMU) LoadDiskWith(ctx context.Context, name string, work client.DiskWork) (*DiskClient, error) {
	d, err := q.reach(name).LoadDisk(ctx, work)
	if err != nil {
		return nil, fmt.Errorf("make guest %s use its disk: %w", name, err)
	}
	return d, nil
}

// LoadDisk makes the guest use its disk, and follows what it acknowledges.
func (r Reach) LoadDisk(ctx context.Context, work client.DiskWork) (*DiskClient, error) {
	if err := r.Control(ctx, func(ctx context.Context, c *client.Control) error { return c.StartDiskWork(ctx, work) }); err != nil {
		return nil, err
	}
	conn, err := r.Dial(ctx, guest.ControlPort)
	if err != nil {
		return nil, err
	}
	acks, err := client.FollowAcks(ctx, conn, 0)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d := &DiskClient{reach: r, acks: acks, ended: make(chan struct{})}
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	go d.follow(ctx)
	return d, nil
}

func (d *DiskClient) follow(ctx context.Context) {
	defer close(d.ended)
	for {
		_, err := d.acks.Next(ctx)
		d.mu.Lock()
		if err != nil {
			if ctx.Err() == nil {
				d.fault = err
			}
			d.mu.Unlock()
			return
		}
		d.last, d.newest = d.acks.Last(), d.acks.Newest()
		d.mu.Unlock()
	}
}

// Last is the number of the newest acknowledged write.
func (d *DiskClient) Last() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// Wait waits until write n is acknowledged.
func (d *DiskClient) Wait(ctx context.Context, n uint64, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for d.Last() < n {
		select {
		case <-d.ended:
			return fmt.Errorf("the guest's acknowledgements ended at %d: %w", d.Last(), d.fault)
		default:
		}
		if Sleep(ctx, 5*time.Millisecond) != nil {
			return fmt.Errorf("the guest has acknowledged write %d, not %d within %v", d.Last(), n, limit)
		}
	}
	return nil
}

// Verify has the guest stop its load, read every file again, past its page
// cache too, and compare with all that it ever acknowledged.
func (d *DiskClient) Verify(ctx context.Context) error { return d.verify(ctx, false) }

// VerifyAfterErrors is Verify for a guest whose disk has failed it: its load may
// have met errors, but of what it was told is safe nothing may be missing.
func (d *DiskClient) VerifyAfterErrors(ctx context.Context) error { return d.verify(ctx, true) }

func (d *DiskClient) verify(ctx context.Context, errorsSeen bool) error {
	return d.reach.Control(ctx, func(ctx context.Context, c *client.Control) error {
		if err := c.StopDiskWork(ctx); err != nil {
			return err
		}
		progress, err := c.DiskProgress(ctx)
		if err != nil {
			return err
		}
		if progress.Errors > 0 && !errorsSeen {
			return fmt.Errorf("%d errors, the first: %s", progress.Errors, progress.First)
		}
		d.mu.Lock()
		known := d.newest
		d.mu.Unlock()
		for range 2 {
			if _, err := c.VerifyDisk(ctx, known); err != nil {
				return err
			}
			if err := c.DropCaches(ctx); err != nil { // then from the disk
				return err
			}
		}
		return c.SyncDisk(ctx)
	})
}

// Close ends the connection.
func (d *DiskClient) Close() error {
	d.stop()
	<-d.ended
	return d.acks.Close()
}

// Fsck waits until all that a guest wrote has reached its disk on the host that
// runs it, and checks the file system there. The guest must be quiet.
func (q *QEMU) Fsck(ctx context.Context, name, owner string) error {
	if err := q.Written(ctx, name, owner); err != nil {
		return err
	}
	return image.Fsck(ctx, q.DiskPath(name, owner))
}

// Written waits until all that a guest wrote has reached its disk on the host
// that runs it.
func (q *QEMU) Written(ctx context.Context, name, owner string) error {
	_, err := q.Await(ctx, name, "all written to its disk", 30*time.Second, func(h string, g host.GuestStatus) bool {
		return h == owner && g.Disks != nil && g.Disks.Writes == 0
	})
	return err
}
