// Asks for one page and reports a click on its first item:
//
//	go run ./example -agent 127.0.0.1:8600 -session s1 -request r1
//
// With -ca FILE and the environment variable PAGETURN_TOKEN it calls an agent that asks for both.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	client "pageturn/clients/go"
	"pageturn/clients/go/agentpb"
)

// token goes with every call; gRPC refuses to send it in the open.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

func (token) RequireTransportSecurity() bool { return true }

func main() {
	target := flag.String("agent", "127.0.0.1:8600", "HOST:PORT, or dns:///NAME:PORT")
	ca := flag.String("ca", "", "certificate of the authority that the agent's is from; without it: no TLS")
	session := flag.String("session", "s1", "the user's session")
	request := flag.String("request", "r1", "unique over all sessions; a retry repeats it")
	timeout := flag.Duration("timeout", 200*time.Millisecond, "how long the page waits")
	flag.Parse()

	agent, err := client.New(*target, options(*ca)...)
	if err != nil {
		log.Fatal(err)
	}
	defer agent.Close()

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	shown, decision, err := agent.Decide(ctx, page(*session, *request))
	if err != nil {
		log.Printf("the ranker's order is shown: %v", err)
	} else {
		report(agent, *session, *request, shown[0])
	}
	print(shown, decision)
}

func options(ca string) []grpc.DialOption {
	if ca == "" {
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	open, err := credentials.NewClientTLSFromFile(ca, "")
	if err != nil {
		log.Fatal(err)
	}
	found := []grpc.DialOption{grpc.WithTransportCredentials(open)}
	if secret := os.Getenv("PAGETURN_TOKEN"); secret != "" {
		found = append(found, grpc.WithPerRPCCredentials(token(secret)))
	}
	return found
}

func page(session, request string) *agentpb.DecideRequest {
	return &agentpb.DecideRequest{
		RequestId: request,
		UserId:    "u1",
		SessionId: session,
		PageIndex: 0,
		Items: []*agentpb.Item{ // as the ranker gave them
			{ItemId: "x", ClickScore: proto.Float64(0.9), PayScore: proto.Float64(0)},
			{ItemId: "y", ClickScore: proto.Float64(0.1), PayScore: proto.Float64(0.9)},
		},
		User:    map[string]*agentpb.Value{"ctr": {Kind: &agentpb.Value_Number{Number: 0.25}}},
		Context: map[string]*agentpb.Value{"bits": {Kind: &agentpb.Value_Unsigned{Unsigned: 1 << 63}}},
	}
}

func report(agent *client.Client, session, request, item string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := agent.Report(ctx, &agentpb.Feedback{
		EventId:   request + "-click",
		RequestId: request,
		UserId:    "u1",
		SessionId: session,
		Kind:      agentpb.FeedbackKind_FEEDBACK_KIND_CLICK,
		ItemId:    proto.String(item),
	})
	if err != nil {
		log.Fatal(err)
	}
}

func print(shown []string, decision *agentpb.DecideResponse) {
	said := map[string]any{"shown": shown}
	if decision != nil {
		said["decided_by"] = decision.GetDecidedBy().String()
		said["policy"] = decision.GetPolicy()
		said["model_version"] = decision.GetModelVersion()
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		log.Fatal(err)
	}
}
