from dataclasses import dataclass, field
import json
Text=str|list
def flatten(t): return t if isinstance(t,str) else "\n".join(m["content"] for m in t)
@dataclass(frozen=True, slots=True)
class Comparison:
    prompt: Text; reference: Text|None; candidates: tuple; ranks: tuple; wrapper: str="sft"; metadata: dict=field(default_factory=dict)
@dataclass(frozen=True, slots=True)
class ScoreItem:
    prompt: Text; reference: Text; output: Text; wrapper: str="sft"; metadata: dict=field(default_factory=dict)
@dataclass
class OnBadRow:
    mode: str="error"; side_file: object=None; count: int=0
def read_comparisons(path, on_bad_row=None):
    if str(path).endswith(".parquet"):
        import pyarrow.parquet as pq
        rows=(r for b in pq.ParquetFile(path).iter_batches(1000) for r in b.to_pylist())
    else: rows=map(json.loads,open(path))
    for r in rows:
        if "chosen" in r: yield Comparison(r["prompt"],r["reference"],(r["chosen"],r["rejected"]),(0,1),r.get("wrapper") or "sft",{"prompt_id":r.get("prompt_id")})
        else: yield Comparison(r["prompt"],r["reference"],tuple(r["candidates"]),tuple(r["ranks"]),r.get("wrapper") or "sft", r.get("metadata") or {})
def read_items(path, on_bad_row=None):
    for l in open(path):
        r=json.loads(l); yield ScoreItem(r["prompt"],r["reference"],r["output"])
