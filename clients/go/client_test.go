package client

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"pageturn/clients/go/agentpb"
)

type agent struct {
	agentpb.UnimplementedAgentServer
}

func (agent) Decide(_ context.Context, page *agentpb.DecideRequest) (*agentpb.DecideResponse, error) {
	return &agentpb.DecideResponse{RequestId: page.GetRequestId()}, nil
}

// gRPC's own pauses between attempts grow to two minutes: of an outage of six seconds this would see the end 3 s late.
func TestAnAgentThatWasAwayIsFoundAgainAtOnce(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
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
	if listener, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	agentpb.RegisterAgentServer(server, agent{})
	go server.Serve(listener)
	defer server.Stop()
	for back := time.Now(); decide() != nil; {
		if time.Since(back) > 1500*time.Millisecond {
			t.Fatalf("it is there again for %v", time.Since(back))
		}
	}
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
