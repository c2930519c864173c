import yaml
from pydantic import BaseModel, ConfigDict
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
def load_config(cls, files, overrides=()):
    d={}
    def merge(a,b):
        for k,v in b.items():
            if isinstance(v,dict) and isinstance(a.get(k),dict): merge(a[k],v)
            else: a[k]=v
    for f in files: merge(d, yaml.safe_load(open(f)) or {})
    for o in overrides:
        k,v=o.split("=",1); x={}; y=x
        *p,l=k.split(".")
        for q in p: y[q]={}; y=y[q]
        y[l]=yaml.safe_load(v)
        try: y[l]=float(v) if "e" in v and not isinstance(y[l],(int,float)) else y[l]
        except ValueError: pass
        merge(d,x)
    return cls(**d)
def to_yaml(c): return yaml.safe_dump(c.model_dump(mode="json"))
