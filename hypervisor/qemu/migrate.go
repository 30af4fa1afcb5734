package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"understudy/hypervisor/qemu/qmp"
)

// Migrate writes QEMU's own migration stream of a paused guest to file, main
// memory left out (x-ignore-shared). No part of protection needs it: the
// benchmark sets a checkpoint against what QEMU's own means would cost.
func (g *Guest) Migrate(ctx context.Context, file *os.File) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if err := g.usable(ctx, "migrate"); err != nil {
		return err
	}
	if err := migrateNow(ctx, g.vm.client, file); err != nil {
		return g.failed("migrate", err)
	}
	return nil
}

// migrateNow is migrate without its events, which go to the goroutine that
// listens for the guest's owner.
func migrateNow(ctx context.Context, client *qmp.Client, file *os.File) error {
	if err := client.ExecuteWithFile(ctx, "getfd", fdName{"stream"}, file, nil); err != nil {
		return err
	}
	if err := client.Execute(ctx, "migrate", migrateURI{"fd:stream"}, nil); err != nil {
		return err
	}
	for {
		var info struct {
			Status string `json:"status"`
		}
		if err := client.Execute(ctx, "query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return awaitPostmigrate(ctx, client)
		case "failed", "cancelled":
			return migrationError(ctx, client)
		case "":
			return errors.New("QEMU knows of no migration")
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("while the migration is %s: %w", info.Status, err)
		}
	}
}

// awaitPostmigrate waits until QEMU has put a migration behind it; before that
// it refuses cont.
func awaitPostmigrate(ctx context.Context, client *qmp.Client) error {
	for {
		s, err := queryStatus(ctx, client)
		if err != nil || s.Status != "finish-migrate" {
			return err
		}
	}
}
