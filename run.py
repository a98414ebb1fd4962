"""The one entry: Hydra composes the settings, a stage runs.

python run.py experiment=cpal_voc stage=train
python run.py -m experiment=cam_voc2007_mini stage=train,make_cam,eval_cam seed=0,1,2
"""

from wsss.cli import main

if __name__ == "__main__":
    main()
