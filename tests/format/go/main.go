// Command lhv1 does to LHV1 files what the old system did: it writes versions 1 and 2 with coder/hnsw,
// and it loads a file into a coder/hnsw graph and searches it.  The tests hold the Python reader and
// writer against it.
//
//	lhv1 write FILE version n dimension distance [seed]
//	lhv1 read FILE [k] < queries.json
//
// `write` also writes FILE.f32: the vectors, float32 little-endian, row-major, item w-00000 first.
// Items whose number is a multiple of three have no metadata.  `read` takes a JSON list of queries and prints
// the parameters, the ids and for each query the k nearest ids, nearest first.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"sort"
	"strconv"

	"github.com/coder/hnsw"
)

const magic = "LHV1"

type params struct {
	Name      string `json:"name"`
	Dimension int    `json:"dimension"`
	M         int    `json:"m"`
	EfSearch  int    `json:"ef_search"`
	Distance  string `json:"distance"`
}

type envelope struct {
	Version  int                        `json:"version"`
	Params   params                     `json:"params"`
	Metadata map[string]json.RawMessage `json:"metadata"`
	IDs      []string                   `json:"ids,omitempty"`
}

type hit struct {
	ID       string          `json:"id"`
	Distance float32         `json:"distance"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

type report struct {
	Version  int     `json:"version"`
	Params   params  `json:"params"`
	Length   int     `json:"length"`
	IDs      int     `json:"ids"`
	Metadata int     `json:"metadata"`
	M        int     `json:"graph_m"`
	Ml       float64 `json:"graph_ml"`
	EfSearch int     `json:"graph_ef_search"`
	Missing  int     `json:"missing"`
	Results  [][]hit `json:"results"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case (len(args) == 6 || len(args) == 7) && args[0] == "write":
		numbers := make([]int, 0, 4)
		for _, text := range append(append([]string{}, args[2:5]...), args[6:]...) {
			number, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			numbers = append(numbers, number)
		}
		seed := int64(1)
		if len(numbers) == 4 {
			seed = int64(numbers[3])
		}
		return write(args[1], numbers[0], numbers[1], numbers[2], args[5], seed)
	case (len(args) == 2 || len(args) == 3) && args[0] == "read":
		k := 10
		if len(args) == 3 {
			var err error
			if k, err = strconv.Atoi(args[2]); err != nil {
				return err
			}
		}
		return read(args[1], k)
	}
	return fmt.Errorf("usage: lhv1 write FILE version n dimension distance [seed] | lhv1 read FILE [k] < queries.json")
}

func distanceNamed(name string) (hnsw.DistanceFunc, error) {
	switch name {
	case "cosine":
		return hnsw.CosineDistance, nil
	case "euclidean":
		return hnsw.EuclideanDistance, nil
	}
	return nil, fmt.Errorf("unknown distance %q", name)
}

func write(path string, version, n, dimension int, distance string, seed int64) error {
	rng := rand.New(rand.NewSource(seed))
	measure, err := distanceNamed(distance)
	if err != nil {
		return err
	}
	graph := hnsw.NewGraph[string]()
	graph.Distance = measure
	graph.Rng = rand.New(rand.NewSource(seed + 1))
	described := envelope{
		Version:  version,
		Params:   params{"written_by_go", dimension, graph.M, graph.EfSearch, distance},
		Metadata: map[string]json.RawMessage{},
	}
	var vectors bytes.Buffer
	for i := 0; i < n; i++ {
		vector := make([]float32, dimension)
		for j := range vector {
			vector[j] = float32(rng.NormFloat64())
		}
		id := fmt.Sprintf("w-%05d", i)
		graph.Add(hnsw.MakeNode(id, vector))
		if err := binary.Write(&vectors, binary.LittleEndian, vector); err != nil {
			return err
		}
		if i%3 != 0 {
			described.Metadata[id] = json.RawMessage(fmt.Sprintf(`{"row":%d,"label":"α/%d"}`, i, i%7))
		}
		if version >= 2 {
			described.IDs = append(described.IDs, id)
		}
	}
	text, err := json.Marshal(described)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString(magic)
	if err := binary.Write(&out, binary.BigEndian, uint32(len(text))); err != nil {
		return err
	}
	out.Write(text)
	if err := graph.Export(&out); err != nil {
		return err
	}
	if err := os.WriteFile(path+".f32", vectors.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

func read(path string, k int) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	source := bufio.NewReader(file)
	prefix := make([]byte, 8)
	if _, err := io.ReadFull(source, prefix); err != nil {
		return err
	}
	if string(prefix[:4]) != magic {
		return fmt.Errorf("not an LHV1 file: %q", prefix[:4])
	}
	text := make([]byte, binary.BigEndian.Uint32(prefix[4:]))
	if _, err := io.ReadFull(source, text); err != nil {
		return err
	}
	var described envelope
	if err := json.Unmarshal(text, &described); err != nil {
		return err
	}
	if described.Version != 1 && described.Version != 2 {
		return fmt.Errorf("unsupported version %d", described.Version)
	}
	graph := hnsw.NewGraph[string]()
	if err := graph.Import(source); err != nil {
		return err
	}
	if _, err := source.ReadByte(); err != io.EOF {
		return fmt.Errorf("bytes after the graph")
	}
	result := report{
		Version:  described.Version,
		Params:   described.Params,
		Length:   graph.Len(),
		IDs:      len(described.IDs),
		Metadata: len(described.Metadata),
		M:        graph.M,
		Ml:       graph.Ml,
		EfSearch: graph.EfSearch,
		Results:  [][]hit{},
	}
	for _, id := range described.IDs {
		if _, ok := graph.Lookup(id); !ok {
			result.Missing++
		}
	}
	var queries [][]float32
	if err := json.NewDecoder(os.Stdin).Decode(&queries); err != nil {
		return fmt.Errorf("queries: %w", err)
	}
	for _, query := range queries {
		hits := []hit{}
		for _, node := range graph.Search(query, k) {
			hits = append(hits, hit{node.Key, graph.Distance(query, node.Value), described.Metadata[node.Key]})
		}
		sort.SliceStable(hits, func(i, j int) bool { return hits[i].Distance < hits[j].Distance })
		result.Results = append(result.Results, hits)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}
