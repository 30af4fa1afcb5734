package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"understudy/hypervisor"
	"understudy/hypervisor/qemu/qmp"
)

// QEMU's events flow like this: the listening goroutine reads them from the
// QMP connection, interpret says what they mean, and what matters goes to the
// Guest's owner. A stop that nobody here asked for is looked into.

// listen starts the goroutine that reads QEMU's events.
func (g *Guest) listen() {
	g.heard.Go(func() {
		defer close(g.events)
		var trouble <-chan error
		if f := g.fill.Load(); f != nil {
			trouble = f.trouble
		}
		for open := true; open; {
			select {
			case err := <-trouble:
				g.deliver(hypervisor.Event{Kind: hypervisor.EventFault, Detail: err.Error()})
			case e, ok := <-g.vm.client.Events():
				if open = ok; !ok {
					continue
				}
				kind, detail := interpret(e)
				if kind == 0 && (e.Name == "STOP" && !g.stopping.Load() || e.Lost > 0) {
					kind, detail = g.inspect()
				}
				if kind != 0 {
					g.deliver(hypervisor.Event{Kind: kind, Detail: detail})
				}
			}
		}
		select {
		case <-g.quit:
			return
		default:
		}
		// QEMU has ended, or cannot be talked to any more. A guest that cannot
		// be stopped must not run on.
		reason := g.vm.client.Err()
		if err := g.vm.proc.kill(); err != nil {
			g.deliver(hypervisor.Event{Kind: hypervisor.EventFault, Detail: err.Error()})
			return
		}
		detail := g.vm.proc.messages.String()
		if detail == "" {
			detail = fmt.Sprint(reason)
		}
		g.deliver(hypervisor.Event{Kind: hypervisor.EventExited, Detail: detail})
	})
}

func (g *Guest) deliver(e hypervisor.Event) {
	select {
	case g.events <- e:
	case <-g.quit:
	}
}

// Events tells what the guest does by itself.
func (g *Guest) Events() <-chan hypervisor.Event { return g.events }

// interpret says what an event means to the guest's owner; kind 0 means
// nothing. The events are those of QEMU's QMP reference manual.
func interpret(e qmp.Event) (hypervisor.EventKind, string) {
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		Action string `json:"action"`
		Device string `json:"device"`
	}
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &data) != nil {
		return 0, ""
	}
	switch e.Name {
	case "SHUTDOWN":
		// A shutdown from outside (a signal, quit) ends QEMU; that is told by
		// its end.
		if data.Guest {
			return hypervisor.EventShutdown, "SHUTDOWN " + data.Reason
		}
	case "RESET":
		return hypervisor.EventReset, "RESET " + data.Reason
	case "GUEST_PANICKED":
		if data.Action != "run" {
			return hypervisor.EventPanic, "GUEST_PANICKED"
		}
	case "BLOCK_IO_ERROR":
		if data.Action == "stop" {
			return hypervisor.EventFault, "BLOCK_IO_ERROR on " + data.Device
		}
	}
	return 0, ""
}

// inspectLimit bounds the question after an unexpected stop.
const inspectLimit = 5 * time.Second

// inspect asks why the guest stands still.
func (g *Guest) inspect() (hypervisor.EventKind, string) {
	ctx, cancel := context.WithTimeout(context.Background(), inspectLimit)
	defer cancel()
	s, err := queryStatus(ctx, g.vm.client)
	if err != nil {
		return 0, "" // the end of the connection tells more
	}
	switch s.Status {
	case "internal-error", "io-error", "watchdog", "colo", "save-vm":
		return hypervisor.EventFault, "QEMU is in state " + s.Status
	}
	// running: an old stop. paused: ours. shutdown, guest-panicked: their own
	// events tell.
	return 0, ""
}
