import sys,time; sys.path.insert(0,'.')
from tests.simulation.test_histories import MUTANTS, Code, World, Cramped, Restless, UpgradeScene
from functools import partial
name=sys.argv[1]; start=int(sys.argv[2]); secs=float(sys.argv[3]); kind={"w":World,"c":Cramped,"r":Restless,"u":None}[sys.argv[4]]
m,old,new=MUTANTS[name]; code=Code({m:(old,new)}); good=Code()
t=time.time(); n=0
for seed in range(start,start+10**6):
    if time.time()-t>secs: break
    n+=1
    make=(lambda c: Cramped(seed,c,upgrade=True)) if kind is None else (lambda c: kind(seed,c))
    try: make(code).run()
    except Exception as e:
        try: make(good).run()
        except Exception as g: print("ALSO GOOD FAILS",seed,repr(g)[:150],flush=True); continue
        print("NOTICED",seed,repr(e)[:120],flush=True); break
print(name,n,flush=True)
