package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"pageturn/clients/go/agentpb"
)

type agent struct {
	agentpb.UnimplementedAgentServer
	reported chan []*agentpb.Feedback
}

func (a agent) Report(_ context.Context, report *agentpb.ReportRequest) (*agentpb.ReportResponse, error) {
	a.reported <- report.GetFeedback()
	return &agentpb.ReportResponse{}, nil
}

func (agent) Decide(_ context.Context, page *agentpb.DecideRequest) (*agentpb.DecideResponse, error) {
	return &agentpb.DecideResponse{RequestId: page.GetRequestId()}, nil
}

// gRPC's own pauses between attempts grow to two minutes: of an outage of six seconds this would see the end 3 s late.
func TestAnAgentThatWasAwayIsFoundAgainAtOnce(t *testing.T) {
	address := freeAddress(t)
	client, err := New(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	page := &agentpb.DecideRequest{RequestId: "r"}
	decide := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_, _, err := client.Decide(ctx, page)
		time.Sleep(20 * time.Millisecond)
		return err
	}
	for away := time.Now(); time.Since(away) < 6*time.Second; {
		if decide() == nil {
			t.Fatal("nobody is there, and answers")
		}
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	agentpb.RegisterAgentServer(server, agent{})
	go server.Serve(listener)
	defer server.Stop()
	// 1.5 s of attempts: counted, since a machine that halts makes none.
	for attempts := 1; decide() != nil; attempts++ {
		if attempts == 75 {
			t.Fatalf("it is there again for %d attempts", attempts)
		}
	}
}

// Below the ports that the system gives to connections: nobody has it before it is listened on.
func freeAddress(t *testing.T) string {
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(12_000))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func TestWhereNobodyAnswersTheOrderIsThatOfTheRequest(t *testing.T) {
	client, err := New("127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	page := &agentpb.DecideRequest{Items: []*agentpb.Item{{ItemId: "x"}, {ItemId: "y"}}}
	shown, decision, err := client.Decide(ctx, page)
	if err == nil || decision != nil || len(shown) != 2 || shown[0] != "x" || shown[1] != "y" {
		t.Fatalf("expected x, y and an error, found %v, %v, %v", shown, decision, err)
	}
}

func TestAnEventWithoutATimeHappenedWhenItWasReported(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, reported := grpc.NewServer(), make(chan []*agentpb.Feedback, 1)
	agentpb.RegisterAgentServer(server, agent{reported: reported})
	go server.Serve(listener)
	defer server.Stop()
	client, err := New(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	then := int64(1_700_000_000_000)
	dated, undated := &agentpb.Feedback{EventId: "1", TimeMs: &then}, &agentpb.Feedback{EventId: "2"}
	ctx, cancel := context.WithTimeout(context.Background(), 250*time.Second)
	defer cancel()
	before := time.Now().UnixMilli()
	if err := client.Report(ctx, dated, undated); err != nil {
		t.Fatal(err)
	}
	events := <-reported
	if len(events) != 2 || events[0].GetTimeMs() != then || events[1].GetEventId() != "2" {
		t.Fatalf("expected both events, the first as it was dated, found %v", events)
	}
	if at := events[1].GetTimeMs(); at < before || at > time.Now().UnixMilli() {
		t.Fatalf("expected the time of the report, found %d", at)
	}
	if undated.TimeMs != nil {
		t.Fatalf("the caller's event was changed: %v", undated)
	}
}
