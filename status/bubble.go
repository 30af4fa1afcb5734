package status

// This file is the bubble: the backup's copy of a guest, started in isolation. Its
// answer is a stream as those of stream.go, of the stages of package bubble.

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"understudy/bubble"
	"understudy/host"
)

// Bubbles is what the endpoint offers of bubbles (package host).
type Bubbles interface {
	Bubble(ctx context.Context, guest string, spec bubble.Spec, progress bubble.Progress) (bubble.Result, error)
	EndBubble(ctx context.Context, guest string) error
}

// BubbleEnds is the answer to DELETE guests/NAME/bubble.
type BubbleEnds struct {
	Guest string `json:"guest"`
}

var errNoBubbles = errors.New("this host has no bubbles")

func (s *Server) bubbleRoutes() []route {
	return []route{
		{"POST /api/v1/guests/{guest}/bubble", Root, streamed(
			func(ctx context.Context, guest string, spec bubble.Spec, p host.Progress) (bubble.Result, error) {
				if s.Bubbles == nil {
					return bubble.Result{}, errNoBubbles
				}
				return s.Bubbles.Bubble(ctx, guest, spec, bubble.Progress(p))
			})},
		{"DELETE /api/v1/guests/{guest}/bubble", Operate, s.operation(func(ctx context.Context, guest string) (any, error) {
			if s.Bubbles == nil {
				return nil, errNoBubbles
			}
			return BubbleEnds{guest}, s.Bubbles.EndBubble(ctx, guest)
		})},
	}
}

func bubblePath(guest string) string { return "/api/v1/guests/" + url.PathEscape(guest) + "/bubble" }

// Bubble has the host's copy of a guest started in isolation, and returns when
// nothing of it is left. progress may be nil. It ends with ctx.
func (c *Client) Bubble(ctx context.Context, guest string, spec bubble.Spec, progress bubble.Progress) (r bubble.Result, err error) {
	return r, c.streamFrom(ctx, bubblePath(guest), spec, &r, host.Progress(progress))
}

// EndBubble ends a guest's bubble on the host.
func (c *Client) EndBubble(ctx context.Context, guest string) error {
	var ends BubbleEnds
	return c.call(ctx, http.MethodDelete, bubblePath(guest), nil, &ends)
}
