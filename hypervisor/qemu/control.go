package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"understudy/hypervisor"
	"understudy/hypervisor/qemu/qmp"
	"understudy/hypervisor/qemu/stream"
)

// What is asked of a QEMU over QMP, beside the pause path in guest.go.

// runStatus is the answer to query-status.
type runStatus struct {
	Status  string `json:"status"`
	Running bool   `json:"running"`
}

func queryStatus(ctx context.Context, client *qmp.Client) (runStatus, error) {
	var s runStatus
	err := client.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// standsStill reports whether a machine was stopped, and by nothing but a stop.
func standsStill(ctx context.Context, client *qmp.Client) (bool, error) {
	s, err := queryStatus(ctx, client)
	return err == nil && !s.Running && s.Status == "paused", err
}

type humanArguments struct {
	CommandLine string `json:"command-line"`
}

// listRAMBlocks is a command of the human monitor; QMP has no stable one.
const listRAMBlocks = "info ramblock"

func queryRAMBlocks(ctx context.Context, client *qmp.Client) (map[string][2]uint64, error) {
	var text string
	if err := client.Execute(ctx, "human-monitor-command", humanArguments{listRAMBlocks}, &text); err != nil {
		return nil, err
	}
	return parseRAMBlocks(text)
}

// disconnected returns the character devices of served disks that have no
// connection.
func disconnected(ctx context.Context, client *qmp.Client) (away []string, err error) {
	var devices []struct {
		Label    string `json:"label"`
		Filename string `json:"filename"`
	}
	if err := client.Execute(ctx, "query-chardev", nil, &devices); err != nil {
		return nil, err
	}
	for _, d := range devices {
		if strings.HasPrefix(d.Label, "vdisk") && strings.HasPrefix(d.Filename, "disconnected:") {
			away = append(away, d.Label)
		}
	}
	return away, nil
}

type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

// prepareMigration makes a QEMU leave main memory out of its streams, and tell
// of their end.
func prepareMigration(ctx context.Context, client *qmp.Client) error {
	args := struct {
		Capabilities []capability `json:"capabilities"`
	}{[]capability{{"x-ignore-shared", true}, {"events", true}}}
	return client.Execute(ctx, "migrate-set-capabilities", args, nil)
}

type fdName struct {
	Name string `json:"fdname"`
}

type migrateURI struct {
	URI string `json:"uri"`
}

// migrate runs one of the two migration commands on a file of ours and waits
// until it has ended.
func migrate(ctx context.Context, client *qmp.Client, command string, file *os.File) error {
	if err := client.ExecuteWithFile(ctx, "getfd", fdName{"stream"}, file, nil); err != nil {
		return err
	}
	if err := client.Execute(ctx, command, migrateURI{"fd:stream"}, nil); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-client.Events():
			if !ok {
				return fmt.Errorf("%s: %w", command, client.Err())
			}
			var data struct {
				Status string `json:"status"`
			}
			if e.Name != "MIGRATION" || json.Unmarshal(e.Data, &data) != nil {
				continue
			}
			switch data.Status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return fmt.Errorf("%s: %w", command, migrationError(ctx, client))
			}
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", command, ctx.Err())
		}
	}
}

// migrationOver waits until a QEMU that has sent its stream can be resumed: it
// tells of the stream's end somewhat earlier.
func migrationOver(ctx context.Context, client *qmp.Client) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		s, err := queryStatus(ctx, client)
		if err != nil {
			return err
		}
		if s.Status == "postmigrate" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of a migration, QEMU is in state %s: %w", s.Status, ctx.Err())
		}
	}
}

func migrationError(ctx context.Context, client *qmp.Client) error {
	var info struct {
		Description string   `json:"error-desc"`
		Blocked     []string `json:"blocked-reasons"`
	}
	if err := client.Execute(ctx, "query-migrate", nil, &info); err != nil {
		if client.Err() != nil {
			return errors.New("it failed") // QEMU has ended, and said why on stderr
		}
		return fmt.Errorf("it failed, and QEMU does not say why: %w", err)
	}
	return fmt.Errorf("QEMU says it failed: %s %q", info.Description, info.Blocked)
}

// selfDescription is what a machine's own migration stream says of it.
type selfDescription struct {
	snapshot *stream.Snapshot
	blocks   []block
	content  map[int][]byte // of each side block, its used part
}

// describe takes a stream of a paused machine, once, with main memory left
// out. It finds out which RAM blocks there are and what they hold, and asks
// QEMU in passing whether anything in the machine forbids to save it.
func describe(ctx context.Context, client *qmp.Client, memory uint64) (*selfDescription, error) {
	if err := prepareMigration(ctx, client); err != nil {
		return nil, err
	}
	file, err := memoryFile("understudy-stream")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if err := migrate(ctx, client, "migrate", file); err != nil {
		var refused *qmp.Error
		if ctx.Err() == nil && (errors.As(err, &refused) || client.Err() == nil) {
			return nil, &hypervisor.Refusal{
				What:   fmt.Sprintf("QEMU does not let this machine be saved: %v", err),
				Remedy: "leave out the device it names",
			}
		}
		return nil, err
	}
	if err := migrationOver(ctx, client); err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > 2*maxSide {
		return nil, fmt.Errorf("a migration stream of %d bytes, although main memory should not be in it", info.Size())
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, info.Size()))
	if err != nil {
		return nil, err
	}
	totals, err := queryRAMBlocks(ctx, client)
	if err != nil {
		return nil, err
	}
	return readDescription(data, totals, memory)
}

// readDescription puts the stream and QEMU's list of blocks together.
func readDescription(data []byte, totals map[string][2]uint64, memory uint64) (*selfDescription, error) {
	type page struct {
		block  int
		offset uint64
		data   []byte
	}
	var pages []page
	s, err := stream.ParseSnapshot(data, func(b int, offset uint64, p []byte) error {
		if p != nil { // stays valid: it points into data
			pages = append(pages, page{b, offset, p})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	d := &selfDescription{snapshot: s, content: map[int][]byte{}}
	for _, b := range s.Blocks {
		sizes, ok := totals[b.Name]
		if !ok || sizes[0] != b.Used {
			return nil, fmt.Errorf("RAM block %s has %d bytes in the stream, QEMU lists %v", b.Name, b.Used, sizes)
		}
		d.blocks = append(d.blocks, block{Block: b, Total: sizes[1]})
		delete(totals, b.Name)
	}
	for name := range totals {
		return nil, &hypervisor.Refusal{
			What:   fmt.Sprintf("RAM block %s is not part of a migration", name),
			Remedy: "leave out the device that owns it",
		}
	}
	if err := checkBlocks(d.blocks, memory); err != nil {
		return nil, err
	}
	for i, b := range d.blocks {
		if b.Name != mainBlock {
			d.content[i] = make([]byte, b.Used)
		}
	}
	for _, p := range pages {
		if d.blocks[p.block].Name == mainBlock {
			return nil, &hypervisor.Refusal{
				What:   "QEMU does not leave main memory out of a stream, although it is a shared file",
				Remedy: "use a QEMU that knows x-ignore-shared, 7.2 for one",
			}
		}
		copy(d.content[p.block][p.offset:], p.data)
	}
	return d, nil
}
