// Package client asks a Pageturn agent for the order of pages, and reports what users did with them.
package client

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"pageturn/clients/go/agentpb"
)

const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
	reportCall   = 2 * time.Second // an answer means that the events are in the log, which takes a moment
)

// Client is safe for concurrent use.
type Client struct {
	connection *grpc.ClientConn
	agent      agentpb.AgentClient
}

// gRPC's own pauses between attempts to connect grow to two minutes, in which an agent that is back gets no page.
var connecting = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
	MinConnectTimeout: 5 * time.Second,
}

// A host that vanished says nothing: its share of the pages would be lost until the kernel gives up, minutes later.
var alive = keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}

// New connects in the background; dns:///NAME:PORT spreads calls over all agents that have the name. An agent that was
// away is found again about half a second after its return.
func New(target string, options ...grpc.DialOption) (*Client, error) {
	options = append([]grpc.DialOption{
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithConnectParams(connecting),
		grpc.WithKeepaliveParams(alive),
	}, options...)
	connection, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, fmt.Errorf("agent at %s: %w", target, err)
	}
	return &Client{connection, agentpb.NewAgentClient(connection)}, nil
}

// Close ends the connections.
func (c *Client) Close() error { return c.connection.Close() }

// Decide returns the ids of the page's items in the order to show, within the context's deadline. Where no agent
// answers this is the order of the request, and the error says why: show it, and report nothing of the page.
func (c *Client) Decide(ctx context.Context, page *agentpb.DecideRequest) ([]string, *agentpb.DecideResponse, error) {
	decision, err := c.agent.Decide(ctx, page)
	if err != nil {
		return received(page), nil, err
	}
	return decision.GetItemIds(), decision, nil
}

// Report returns nil once all events are in the agent's log. Until then it sends them again, with the ids they have, so
// that each counts once. It gives up when the context ends, or when the agent refuses an event as wrong.
func (c *Client) Report(ctx context.Context, feedback ...*agentpb.Feedback) error {
	request := &agentpb.ReportRequest{Feedback: dated(feedback, time.Now().UnixMilli())}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := c.reportOnce(ctx, request)
		if err == nil || status.Code(err) == codes.InvalidArgument {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("events not acknowledged: %w", err)
		case <-time.After(pause):
		}
	}
}

func (c *Client) reportOnce(ctx context.Context, request *agentpb.ReportRequest) error {
	call, cancel := context.WithTimeout(ctx, reportCall)
	defer cancel()
	_, err := c.agent.Report(call, request)
	return err
}

// An event without a time happened now, however late it is delivered. The caller's own stays as it is: it may be shared.
func dated(feedback []*agentpb.Feedback, nowMs int64) []*agentpb.Feedback {
	events := slices.Clone(feedback)
	for i, event := range events {
		if event.TimeMs == nil {
			events[i] = proto.CloneOf(event)
			events[i].TimeMs = &nowMs
		}
	}
	return events
}

func received(page *agentpb.DecideRequest) []string {
	ids := make([]string, len(page.GetItems()))
	for i, item := range page.GetItems() {
		ids[i] = item.GetItemId()
	}
	return ids
}
