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
